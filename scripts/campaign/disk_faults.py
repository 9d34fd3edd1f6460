"""Faults at the n-th call that changes files below a folder, by a small library that is loaded before the C library."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

SOURCE = Path(__file__).with_name("disk_faults.c")


class Action(IntEnum):
    """What happens at the call."""

    NOTHING = 0
    LOG = 1
    END_BEFORE = 2
    END_HALF = 3
    END_AFTER = 4
    FAIL_ONCE = 5
    FAIL_FROM_THEN = 6


@dataclass(frozen=True)
class DiskFault:
    """A fault of one process.

    Attributes:
        action: what happens at the call; the process ends before, within (half of a write) or after it.
        folder: calls that change files below it count.
        at: the number of the call, from 1.
        number: the errno of a failing call.
        log: where LOG writes a line for each call.
    """

    action: Action
    folder: Path
    at: int = 1
    number: int = 0
    log: Path | None = None

    def arm(self) -> None:
        """From now on, in this process."""
        library = ctypes.CDLL(os.environ["LD_PRELOAD"])
        arguments = (ctypes.c_int(self.action), ctypes.c_long(self.at), ctypes.c_int(self.number))
        library.disk_faults_arm(*arguments, os.fsencode(self.folder), os.fsencode(self.log or ""))


def compiler() -> str | None:
    """A C compiler of this machine; faults need one, and Linux."""
    return (shutil.which("cc") or shutil.which("gcc")) if sys.platform == "linux" else None


def build(folder: Path) -> Path:
    """The library, compiled into a folder."""
    library = folder / "disk_faults.so"
    command = [str(compiler()), "-shared", "-fPIC", "-O1", "-Wall", "-o", str(library), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True)
    return library
