"""Writing whole files, and disk errors with clear messages."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
    """Write files so that each is the old or the new one at any moment; none is replaced before all are written.

    Args:
        folder: exists.
        contents: by file name.

    Raises:
        UserError: the disk is full, or may not be written to.
    """
    temporary = {name: folder / f".{name}-{os.getpid()}.tmp" for name in contents}
    for name in contents:
        path = folder / name
        if path.exists() and not path.is_file():
            raise UserError(f"cannot write {path}: something that is no plain file is there; use another path")
    try:
        for name, data in contents.items():
            with disk_errors(folder / name):
                write_synced(temporary[name], data)
        for name in contents:
            with disk_errors(folder / name):
                os.replace(temporary[name], folder / name)
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)
    sync_folder(folder)
