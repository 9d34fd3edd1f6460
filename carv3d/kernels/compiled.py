"""CUDA kernels that other packages compile on this machine. They are built and tried before a run uses them."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import torch
from filelock import FileLock

from carv3d.errors import UserError
from carv3d.runs.storage import replace_file
from carv3d.system.cache import cache_folder

_VARIABLE = "NVCC_APPEND_FLAGS"


def unusable(package: str, device: torch.device, trial: Callable[[], object], flags: str = "") -> str | None:
    """Why a package's kernels cannot be used on a device, in one line; None if they can.

    The kernels must lie in `<package>.cuda._backend._C` and be built when that is imported, as those of gsplat
    and nerfacc are. On other devices than CUDA nothing is imported, because a failed import affects later ones.

    Args:
        package: its name.
        device: where they would run.
        trial: runs them once.
        flags: for nvcc, while the kernels are built; the environment is as before afterwards.
    """
    if importlib.util.find_spec(package) is None:
        return f"{package} is not installed"
    if device.type != "cuda" or not torch.cuda.is_available():
        return f"{package} needs a CUDA device"
    stage = "build"
    try:
        # The output of a build does not belong to stdout.
        with _alone(package), _nvcc(flags), redirect_stdout(sys.stderr):
            kernels = importlib.import_module(f"{package}.cuda._backend")._C
        if kernels is None:
            return f"{package} does not build: there is no CUDA compiler; put nvcc on the PATH"
        stage = "run"
        trial()
        torch.cuda.synchronize(device)
    except Exception as error:  # errors of compilers and loaders have no common type
        return failure(package, stage, error)
    return None


def failure(name: str, stage: str, error: Exception) -> str:
    """One line about an error, and the file with its full text, because compilers print pages.

    Args:
        name: of the kernels.
        stage: that failed: "build" or "run".
        error: what was raised.
    """
    path = cache_folder() / "kernels" / f"{name.replace(' ', '_')}.log"
    line = f"{name} does not {stage}: {_reason(error)}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        versions = f"torch {torch.__version__}, CUDA {torch.version.cuda}\n\n"
        replace_file(path, (versions + "".join(traceback.format_exception(error))).encode())
    except (OSError, UserError):  # the log is not essential
        return line
    return f"{line}; the whole output is in {path}"


def _reason(error: Exception) -> str:
    """The first line with an error of the compiler, else the first line."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if re.search(r"\berror ?:", line, re.IGNORECASE)]
    return ([*named, *lines, type(error).__name__])[0][:200]


@contextmanager
def _nvcc(flags: str) -> Iterator[None]:
    before = os.environ.get(_VARIABLE)
    if flags:
        os.environ[_VARIABLE] = f"{before or ''} {flags}".strip()
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(_VARIABLE, None)
        else:
            os.environ[_VARIABLE] = before


@contextmanager
def _alone(package: str) -> Iterator[None]:
    """One process builds at a time, and does not wait for a killed build. torch marks a build by a file named `lock`;
    a killed process leaves this file, and the next process would wait for it. The system releases the lock here when
    its process ends, so that the owner may remove torch's file.
    """
    from torch.utils.cpp_extension import _get_build_directory

    build = Path(_get_build_directory(f"{package}_cuda", verbose=False))
    with FileLock(build.parent / f".{package}-carv3d.lock"):
        (build / "lock").unlink(missing_ok=True)
        yield
