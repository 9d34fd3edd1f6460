"""Kernels of other packages: when they are built, and what is said when they cannot be."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

from carv3d.kernels.compiled import unusable

CUDA = torch.device("cuda")
VARIABLE = "NVCC_APPEND_FLAGS"

FAILS = """
print("setting up")
raise RuntimeError('''Error building extension 'packed_cuda': [1/2] nvcc -c scan.cu
FAILED: [code=1] scan.cuda.o
scan.cu(12): warning #177-D: a variable was declared but never referenced
utils.cuh:1145:44: error: 'float lerp(float, float, float)' conflicts with a previous declaration
ninja: build stopped: subcommand failed.''')
"""
BUILDS = """
import os, pathlib
pathlib.Path(__file__).with_name("flags").write_text(os.environ.get("NVCC_APPEND_FLAGS", ""))
_C = object()
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package `packed` whose `cuda/_backend.py` a test writes, and a machine that believes it has a GPU."""
    folder = tmp_path / "site" / "packed" / "cuda"
    folder.mkdir(parents=True)
    for place in (folder, folder.parent):
        (place / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(folder.parent.parent))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    monkeypatch.setenv("CARV3D_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    for name in [name for name in sys.modules if name.split(".")[0] == "packed"]:
        monkeypatch.delitem(sys.modules, name)
    return folder


def nothing() -> None:
    pass


def test_what_is_not_installed_is_said() -> None:
    assert unusable("no_such_package", CUDA, nothing) == "no_such_package is not installed"


def test_on_a_cpu_nothing_is_imported(package: Path) -> None:
    """An import that fails spoils those that come later in the process, on a GPU too."""
    (package / "_backend.py").write_text(FAILS)
    assert unusable("packed", torch.device("cpu"), nothing) == "packed needs a CUDA device"
    assert "packed.cuda._backend" not in sys.modules and "packed" not in sys.modules


def test_a_failed_build_gives_the_reason_and_keeps_the_output(
    package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The compiler's error and not ninja's last word, in one line; what the package prints does not go to stdout."""
    (package / "_backend.py").write_text(FAILS)
    line = unusable("packed", CUDA, nothing, "-std=c++17")
    log = tmp_path / "cache" / "kernels" / "packed.log"
    assert line is not None and "\n" not in line
    assert line.startswith("packed does not build: utils.cuh:1145:44: error: 'float lerp(float, float, float)'")
    assert line.endswith(f"; the whole output is in {log}")
    assert "FAILED: [code=1] scan.cuda.o" in log.read_text() and torch.__version__ in log.read_text()
    assert VARIABLE not in os.environ
    captured = capsys.readouterr()
    assert captured.out == "" and "setting up" in captured.err


@pytest.mark.parametrize("before", [None, "-lineinfo"])
def test_flags_are_there_while_it_builds_and_only_then(
    package: Path, monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    """Appended to the user's own, which are as before when it is done."""
    if before is not None:
        monkeypatch.setenv(VARIABLE, before)
    (package / "_backend.py").write_text(BUILDS)
    during_trial: list[str | None] = []
    assert unusable("packed", CUDA, lambda: during_trial.append(os.environ.get(VARIABLE)), "-std=c++17") is None
    assert (package / "flags").read_text() == f"{before or ''} -std=c++17".strip()
    assert os.environ.get(VARIABLE) == before and during_trial == [before]


def test_no_compiler(package: Path) -> None:
    """Both packages then give None for their kernels, and fail when they are called."""
    (package / "_backend.py").write_text("_C = None")
    line = unusable("packed", CUDA, nothing)
    assert line == "packed does not build: there is no CUDA compiler; put nvcc on the PATH"


def test_kernels_that_build_and_do_not_run(package: Path, tmp_path: Path) -> None:
    """Another architecture than the one compiled for, for instance."""
    (package / "_backend.py").write_text(BUILDS)

    def trial() -> None:
        raise RuntimeError("CUDA error: no kernel image is available\nCompile with `TORCH_USE_CUDA_DSA`")

    line = unusable("packed", CUDA, trial)
    log = tmp_path / "cache" / "kernels" / "packed.log"
    assert line == f"packed does not run: CUDA error: no kernel image is available; the whole output is in {log}"


def test_a_cache_that_cannot_be_written_is_no_reason_to_stop(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CARV3D_CACHE", str(tmp_path / "file"))
    (package / "_backend.py").write_text(FAILS)
    line = unusable("packed", CUDA, nothing)
    assert line is not None and "error: 'float lerp" in line and "whole output" not in line


def test_the_lock_of_a_killed_build_is_cleared(package: Path, tmp_path: Path) -> None:
    """torch waits for that file without end, and nobody will remove it."""
    lock = tmp_path / "extensions" / "packed_cuda" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    (package / "_backend.py").write_text(f"import os\n_C = object()\nassert not os.path.exists({str(lock)!r})")
    assert unusable("packed", CUDA, nothing) is None
