"""What tests of run folders share."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from carv3d.config import Config, load
from carv3d.runs import (
    Checkpoints,
)

REPOSITORY = Path(__file__).parents[1]


def small_config(tmp_path: Path) -> Config:
    """Of a run in the folder; a fixture where one says so."""
    return load(None, ["prompt=A red chair!", f"output_dir={tmp_path}", "training.keep_checkpoints=2"])


def tensors(step: int) -> dict[str, Tensor]:
    """Tensors that tell of which step they are, one of them neither contiguous nor alone in its memory."""
    base = torch.full((4, 3), float(step))
    return {"grid": base, "part": base.T[1:]}


def save(checkpoints: Checkpoints, step: int, keep: int = 2, **info: Any) -> Path:
    return checkpoints.save(step, tensors(step), {"moment": torch.full((2,), step)}, info, keep=keep)


def assert_whole(checkpoints: Checkpoints, step: int) -> None:
    got = checkpoints.load(step)
    assert got.step == step
    assert torch.equal(got.trained["part"], tensors(step)["part"])
    assert torch.equal(got.state["moment"], torch.full((2,), step))


def python(code: str, *arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, **options)


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
