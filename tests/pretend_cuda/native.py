"""Builds and loads `guard.cpp`. Imported before torch, which asks for the hooks once, when it is imported."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("guard.cpp")


def compiler() -> str | None:
    """A C++ compiler, or None."""
    return next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)


def load() -> None:
    """Give torch a CUDA device.

    Raises:
        RuntimeError: torch has been imported already, or there is no compiler.
    """
    spec, program = importlib.util.find_spec("torch"), compiler()
    if "torch" in sys.modules:
        raise RuntimeError("a pretended CUDA device must be installed before torch is imported")
    if spec is None or spec.origin is None or program is None:
        raise RuntimeError("a pretended CUDA device needs torch and a C++ compiler")
    root = Path(spec.origin).parent
    version = hashlib.sha256((root / "version.py").read_bytes() + SOURCE.read_bytes()).hexdigest()[:16]
    built = Path(tempfile.gettempdir()) / f"carv3d-pretend-cuda-{os.getuid()}-{version}.so"
    if not built.exists():
        part = built.with_suffix(f".{os.getpid()}")
        options = ["-std=c++20", "-shared", "-fPIC", f"-I{root / 'include'}", f"-L{root / 'lib'}"]
        subprocess.run([program, str(SOURCE), "-o", str(part), *options, "-lc10", "-ltorch_cpu"], check=True)
        part.replace(built)
    ctypes.CDLL(str(root / "lib" / "libtorch_cpu.so"), mode=ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(built))
