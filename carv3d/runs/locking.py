"""One process at a time in a folder that the same command goes on with."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from carv3d.errors import UserError
from carv3d.runs.storage import disk_errors


@contextmanager
def locked(folder: Path, command: str) -> Iterator[None]:
    """Hold a folder, which is made if it is not there; the system lets go of it however the process ends.

    Args:
        folder: of results.
        command: what works in it, for the message.

    Raises:
        UserError: another process has it.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "a", encoding="utf-8")  # noqa: SIM115
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder} is in use by another `{command}`; wait for it or stop it") from None
        try:
            yield
        finally:
            if {path.name for path in folder.iterdir()} == {".lock"}:  # nothing is left of a mistake
                (folder / ".lock").unlink()
                folder.rmdir()
