"""The lock of a folder: one process at a time works in it. The system releases the lock if the process is killed."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from carv3d.errors import UserError
from carv3d.runs.storage import disk_errors, finish_replacing, is_leftover, made_folder


class FolderLock:
    """The lock of a folder: the file `.lock` in it, which holds the process number of the owner.

    Args:
        folder: exists.
        owner: what holds the lock if this process does not get it, for the error.
    """

    def __init__(self, folder: Path, owner: str = "another process") -> None:
        self.folder, self._owner = folder, owner
        self._lock = FileLock(folder / ".lock", timeout=0)

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            UserError: another process has it, or the disk may not be written to.
        """
        path = self.folder / ".lock"
        with disk_errors(self.folder):
            refuse_links(self.folder)
            try:
                self._lock.acquire()
            except Timeout:
                pid = path.read_text(encoding="utf-8").strip()
                who = f"{self._owner} ({pid})" if pid else self._owner
                raise UserError(f"{self.folder} is in use by {who}; wait for it or stop it") from None
            try:
                path.write_text(f"pid {os.getpid()}", encoding="utf-8")
            except OSError:  # a full disk
                self._lock.release()
                raise
            remove_leftovers(self.folder)

    def release(self) -> None:
        """Give the lock back, if this process has it."""
        self._lock.release()


def wait_until_free(folder: Path, seconds: float) -> None:
    """Wait until no process has the lock of a folder, at most so long; at once where there is no lock."""
    if (folder / ".lock").is_file():
        lock = FileLock(folder / ".lock", timeout=seconds)
        with suppress(Timeout, OSError), lock:
            pass


def refuse_links(folder: Path) -> None:
    """Refuse to work in a folder with links in it: what is written there would change files elsewhere.

    Raises:
        UserError: names the link.
    """
    for path in folder.iterdir():
        if path.is_symlink():
            raise UserError(f"{path} is a link, and results would be written where it leads: put a copy in its place")


def refuse_special_files(folder: Path) -> None:
    """Refuse a folder with pipes, sockets or devices in it: reading one may wait without end.

    Raises:
        UserError: names the file.
    """
    for path in folder.rglob("*"):
        if not stat.S_ISREG(mode := path.lstat().st_mode) and not stat.S_ISDIR(mode) and not stat.S_ISLNK(mode):
            raise UserError(f"{path} is no file but a pipe, a socket or a device: remove it")


def remove_leftovers(folder: Path) -> None:
    """Complete or remove what killed processes left in a folder and the folders in it; its lock must be held."""
    folders = [folder, *(path for pattern in ("*/", "*/*/") for path in folder.glob(pattern) if path.is_dir())]
    for each in folders:
        finish_replacing(each)
        for path in each.glob(".*.tmp"):
            if path.is_file() and is_leftover(path):
                path.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path, command: str) -> Iterator[None]:
    """Hold the lock of a folder, which is made if it is not there.

    Args:
        folder: of results.
        command: what works in the folder, for the error.

    Raises:
        UserError: another process has it.
    """
    with made_folder(folder):
        lock = FolderLock(folder, f"another `{command}`")
        lock.acquire()
        try:
            yield
        finally:
            if {path.name for path in folder.iterdir()} == {".lock"}:  # nothing is left of a mistake
                (folder / ".lock").unlink()
            lock.release()
