// Loaded before the C library: counts the calls of a process that change files below a folder. At the n-th call it
// ends the process without warning, or lets the call fail. A process is left alone until it calls disk_faults_arm.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

// What happens at the n-th call, in the order of disk_faults.py.
enum { NOTHING, LOG, END_BEFORE, END_HALF, END_AFTER, FAIL_ONCE, FAIL_FROM_THEN };
// What a call does now.
enum { GO_ON, FAIL, HALF_AND_END, DO_AND_END };

static atomic_int action = NOTHING;
static atomic_long left = 0;
static int error_number = EIO, log_file = -1;
static char folder[PATH_MAX];

void disk_faults_arm(int what, long at, int number, const char *below, const char *log) {
  strncpy(folder, below, sizeof folder - 1);
  if (*log) log_file = open(log, O_CREAT | O_WRONLY | O_APPEND, 0644);
  left = at;
  error_number = number;
  action = what;
}

static void end(void) {
  kill(getpid(), SIGKILL);
  for (;;) pause();
}

// The absolute path of a name in a folder that is open, or in the working folder.
static void absolute(int at, const char *name, char *path) {
  char link[64];
  if (name[0] == '/') {
    snprintf(path, PATH_MAX, "%s", name);
    return;
  }
  ssize_t n = -1;
  if (at == AT_FDCWD) {
    if (getcwd(path, PATH_MAX)) n = (ssize_t)strlen(path);
  } else {
    snprintf(link, sizeof link, "/proc/self/fd/%d", at);
    n = readlink(link, path, PATH_MAX - 1);
  }
  if (n < 0) n = 0;
  snprintf(path + n, (size_t)(PATH_MAX - n), "/%s", name);
}

static int meet(const char *call, int at, const char *name) {
  int now = action;
  char path[PATH_MAX], line[PATH_MAX + 32];
  if (now == NOTHING || !name) return GO_ON;
  absolute(at, name, path);
  if (strncmp(path, folder, strlen(folder))) return GO_ON;
  if (now == LOG) {
    int n = snprintf(line, sizeof line, "%s %s\n", call, path);
    action = NOTHING;
    if (write(log_file, line, (size_t)n) < 0) action = NOTHING;
    action = LOG;
    return GO_ON;
  }
  long still = --left;
  if (now == FAIL_FROM_THEN) return still <= 0 ? FAIL : GO_ON;
  if (still != 0) return GO_ON;
  if (now == FAIL_ONCE) return FAIL;
  if (now == END_BEFORE) end();
  return now == END_HALF ? HALF_AND_END : DO_AND_END;
}

static int meet_file(const char *call, int file) {
  char link[64], path[PATH_MAX];
  if (action == NOTHING) return GO_ON;
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t n = readlink(link, path, sizeof path - 1);
  if (n < 0) return GO_ON;
  path[n] = 0;
  return meet(call, AT_FDCWD, path);
}

#define REAL(name) \
  static __typeof__(&name) real; \
  if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

#define CALL(type, name, parameters, arguments, met) \
  type name parameters { \
    REAL(name); \
    int what = met; \
    if (what == FAIL) { errno = error_number; return -1; } \
    type result = real arguments; \
    if (what != GO_ON) end(); \
    return result; \
  }

#define WRITE(name, parameters, arguments, half) \
  ssize_t name parameters { \
    REAL(name); \
    int what = meet_file("write", file); \
    if (what == FAIL) { errno = error_number; return -1; } \
    if (what == HALF_AND_END) { if (real half < 0) end(); end(); } \
    ssize_t result = real arguments; \
    if (what != GO_ON) end(); \
    return result; \
  }

WRITE(write, (int file, const void *data, size_t n), (file, data, n), (file, data, n / 2))
WRITE(pwrite64, (int file, const void *data, size_t n, off64_t at), (file, data, n, at), (file, data, n / 2, at))
WRITE(sendfile64, (int file, int from, off64_t *at, size_t n), (file, from, at, n), (file, from, at, n / 2))
CALL(int, fsync, (int file), (file), meet_file("fsync", file))
CALL(int, fdatasync, (int file), (file), meet_file("fsync", file))
CALL(int, ftruncate64, (int file, off64_t n), (file, n), meet_file("truncate", file))
CALL(int, rename, (const char *a, const char *b), (a, b), meet("rename", AT_FDCWD, b))
CALL(int, unlink, (const char *a), (a), meet("unlink", AT_FDCWD, a))
CALL(int, unlinkat, (int at, const char *a, int flags), (at, a, flags), meet("unlink", at, a))
CALL(int, rmdir, (const char *a), (a), meet("rmdir", AT_FDCWD, a))
CALL(int, mkdir, (const char *a, mode_t mode), (a, mode), meet("mkdir", AT_FDCWD, a))
CALL(int, mkdirat, (int at, const char *a, mode_t mode), (at, a, mode), meet("mkdir", at, a))

#define OPEN(name) \
  int name(const char *a, int flags, ...) { \
    REAL(name); \
    mode_t mode = 0; \
    if (flags & (O_CREAT | __O_TMPFILE)) { \
      va_list rest; \
      va_start(rest, flags); \
      mode = va_arg(rest, mode_t); \
      va_end(rest); \
    } \
    int changes = (flags & (O_CREAT | O_TRUNC)) || (flags & O_ACCMODE) != O_RDONLY; \
    int what = changes ? meet("open", AT_FDCWD, a) : GO_ON; \
    if (what == FAIL) { errno = error_number; return -1; } \
    int result = real(a, flags, mode); \
    if (what != GO_ON) end(); \
    return result; \
  }

OPEN(open)
OPEN(open64)
