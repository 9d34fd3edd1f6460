"""Functions compiled for the CPU by numba, and the threads that they run in."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch

from carv3d.system.cache import cache_folder

os.environ.setdefault("NUMBA_SLP_VECTORIZE", "1")  # read when numba is imported: four channels by one instruction
numba: Any
try:
    import numba
except Exception as error:  # not installed, or not for this Python or numpy
    numba = None
    _missing = " ".join(str(error).split())

PARTS = 4
"""Into so many parts a kernel's work is divided, on every machine: results do not depend on the number of threads."""

# Sums may be taken in another order, and products and sums fused. Not-a-numbers are kept: a check looks for them.
_FAST = {"contract", "reassoc", "arcp", "nsz", "afn"}

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """The function, compiled when it is first called; without numba the function itself.

    It lets other threads run. The machine code is kept in the cache folder, so that a later process need not compile
    it; where that cannot be written, every process compiles it.
    """
    if numba is None:
        return function
    options: dict[str, Any] = {"nogil": True, "fastmath": _FAST, "error_model": "numpy"}
    before = numba.config.CACHE_DIR
    try:
        numba.config.CACHE_DIR = str(_folder())
        found: Function = numba.njit(cache=True, **options)(function)
    except (RuntimeError, OSError):  # there is no such folder, or it cannot be written
        found = numba.njit(**options)(function)
    finally:
        numba.config.CACHE_DIR = before
    return found


def _folder() -> Path:
    """Where machine code is kept, by version of all kernels: numba notices a change of a function's own file only."""
    own = os.environ.get("NUMBA_CACHE_DIR")
    return (Path(own) if own else cache_folder() / "numba") / _version()


@cache
def _version() -> str:
    text = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    return hashlib.sha256(text).hexdigest()[:16]


def inlined(function: Function) -> Function:
    """A part of compiled functions, which is compiled into them."""
    if numba is None:
        return function
    found: Function = numba.njit(forceinline=True, fastmath=_FAST, error_model="numpy")(function)
    return found


@cache
def problem(device: torch.device) -> str | None:
    """Why compiled functions cannot be used on a device, in one line; None if they can."""
    if device.type != "cpu":
        return "numba's kernels run on the CPU"
    if numba is None:
        return f"numba cannot be used ({_missing})"
    try:
        if compiled(_double)(2) != 4:
            raise ArithmeticError("2 + 2 is not 4")
    except Exception as error:
        return f"numba cannot compile here ({' '.join(str(error).split())[:200]})"
    return None


def _double(x: int) -> int:
    return x + x


def run(function: Callable[..., Any], parts: Sequence[tuple[Any, ...]]) -> None:
    """Call a compiled function with each part's arguments, in as many threads as torch has."""
    threads = min(torch.get_num_threads(), len(parts))
    if threads == 1:
        for arguments in parts:
            function(*arguments)
    else:
        list(_pool(os.getpid(), threads).map(lambda arguments: function(*arguments), parts))


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """A process's own threads: those of a parent are not in a child."""
    return ThreadPoolExecutor(threads, thread_name_prefix="carv3d-kernel")
