"""Writing whole files, and disk errors with clear messages."""

from __future__ import annotations

import errno
import glob
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from carv3d.errors import UserError

_REASONS = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EFBIG: "the disk allows no file this large; use another one",
    errno.EACCES: "permission denied; use a folder you may write to",
    errno.EPERM: "permission denied; use a folder you may write to",
    errno.EROFS: "the disk is read-only; use another one",
    errno.ENOTDIR: "a part of the path is a file; use another path",
    errno.EEXIST: "a file of that name is in the way; use another path",
    errno.ENOENT: "there is no such folder; make it first",
    errno.EISDIR: "it is a folder; use another path",
    errno.EIO: "the disk has failed to read or write; use another one",
    errno.ESTALE: "the network disk no longer knows the file; try again",
    errno.ETIMEDOUT: "the network disk does not answer; try again",
    errno.ELOOP: "it is a link that leads to itself; use another path",
    errno.ENAMETOOLONG: "the path is too long; use a shorter one",
}


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns the disk errors that a user can mend into a UserError that names the path."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REASONS:
            raise
        raise UserError(f"cannot write {path}: {_REASONS[error.errno]}") from error


def write_synced(path: Path, data: bytes) -> None:
    """Write a new file and wait until the disk has it."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the disk has the folder's list of names."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, data: bytes) -> None:
    """Write a file so that at any moment there is the old one or the new one.

    Raises:
        UserError: the disk is full, or may not be written to.
    """
    replace_files(path.parent, {path.name: data})


def replace_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files that belong together, so that old and new ones are never mixed.

    All are written under temporary names, then a list of them. From then on they are the new files: the old ones are
    removed, the new ones get their names, and if the process is killed on the way, `finish_replacing` does the rest.
    One file is renamed over the old one without a list.

    Args:
        folder: exists.
        contents: by file name.

    Raises:
        UserError: the disk is full, or may not be written to.
    """
    temporary = {name: folder / f".{name}-{os.getpid()}.tmp" for name in contents}
    the_list = folder / f"{_LIST}{os.getpid()}.tmp" if len(contents) > 1 else None
    for name in contents:
        path = folder / name
        if path.exists() and not path.is_file():
            raise UserError(f"cannot write {path}: something that is no plain file is there; use another path")
    finish_replacing(folder)
    for name in contents:  # of this name, which a killed process left
        for path in folder.glob(f".{glob.escape(name)}-*.tmp"):
            if path.is_file() and is_leftover(path):
                with disk_errors(path):
                    path.unlink(missing_ok=True)
    written = False
    try:
        for name, data in contents.items():
            with disk_errors(folder / name):
                write_synced(temporary[name], data)
        if the_list is not None:
            with disk_errors(folder):
                write_synced(the_list, json.dumps({path.name: name for name, path in temporary.items()}).encode())
                written = True
                _put(the_list)
        for name in contents if the_list is None else ():
            with disk_errors(folder / name):
                os.replace(temporary[name], folder / name)
    finally:
        if not written:
            for path in [*temporary.values(), *filter(None, [the_list])]:
                with suppress(OSError):
                    path.unlink(missing_ok=True)
    sync_folder(folder)


def finish_replacing(folder: Path) -> None:
    """Complete what a `replace_files` that was killed had begun, or failed at.

    Raises:
        UserError: the disk may not be written to.
    """
    for path in folder.glob(f"{_LIST}*.tmp"):
        if is_leftover(path):
            with disk_errors(folder):
                _put(path)


def is_leftover(path: Path) -> bool:
    """Whether a temporary file's process, whose number is in its name, is another one that has ended."""
    match = re.fullmatch(r".*-(\d+)\.tmp", path.name)
    if match is None or int(match[1]) == os.getpid():
        return True
    try:
        os.kill(int(match[1]), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:  # a process of another user
        return False
    return False


@contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Make a folder and see that it may be written to; those that are made and empty at the end are removed.

    Raises:
        UserError: the disk is full, or may not be written to.
    """
    new = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        yield
    finally:
        for each in new:
            with suppress(OSError):  # something is in it
                each.rmdir()


@contextmanager
def temporary_folder(name: str) -> Iterator[Path]:
    """A new folder in the system's temporary folder. If the process is killed, the next one that asks removes it.

    Args:
        name: of what it is for; the folder's name begins with it.
    """
    for path in Path(tempfile.gettempdir()).glob(f"carv3d-{name}-*.tmp"):
        if is_leftover(path) and not path.name.endswith(f"-{os.getpid()}.tmp"):  # another thread's
            shutil.rmtree(path, ignore_errors=True)  # not that of another user
    with tempfile.TemporaryDirectory(prefix=f"carv3d-{name}-", suffix=f"-{os.getpid()}.tmp") as folder:
        yield Path(folder)


def remove_forgotten(folder: Path) -> None:
    """Remove temporary files that are older than an hour: of killed processes, in a folder that many write to."""
    for path in folder.glob(".*.tmp"):
        with suppress(OSError):
            if is_leftover(path) and time.time() - path.stat().st_mtime > 3600:
                path.unlink(missing_ok=True)


_LIST = ".replacing-"


def _put(the_list: Path) -> None:
    """Give the files of a list their names; a list that is not whole counts as none."""
    folder = the_list.parent
    with suppress(ValueError, TypeError, AttributeError):
        names = json.loads(the_list.read_bytes())
        pairs = [(folder / Path(old).name, folder / Path(new).name) for old, new in names.items()]
        for old, new in pairs:
            if old.is_file():
                new.unlink(missing_ok=True)
        for old, new in pairs:
            if old.is_file():
                os.replace(old, new)
        sync_folder(folder)
    the_list.unlink(missing_ok=True)
