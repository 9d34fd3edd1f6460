"""Networks compute in a number format that the machine is fast in."""

from __future__ import annotations

import pytest
import torch

from carv3d import build
from carv3d.config import Config
from carv3d.system import arithmetic
from carv3d.teachers.config import DiffusersTeacherConfig


def test_auto_is_bfloat16_only_where_the_machine_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """On an AVX2 laptop bfloat16 is about 15 times slower than float32."""
    product = torch.ones(2, 2)
    for fast, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(arithmetic, "is_fast", lambda dtype, device, fast=fast: fast)
        with arithmetic.autocast("auto", "cpu"):
            assert (product @ product).dtype == expected
        with arithmetic.autocast("bfloat16", "cpu"):  # as asked for, fast or not
            assert (product @ product).dtype == torch.bfloat16


def test_the_machine_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 is always fast; bfloat16 on a CPU is what torch says of it."""
    assert arithmetic.is_fast(torch.float32, "cpu")
    assert arithmetic.is_fast(torch.bfloat16, "cpu") == torch.ops.mkldnn._is_mkldnn_bf16_supported()


def test_a_half_precision_teacher_is_float32_on_a_cpu_without_that_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """configs/sd3.yaml asks for bfloat16, for a GPU; on such a CPU that would be a cliff."""
    config = Config(teacher=DiffusersTeacherConfig(dtype="bfloat16"))
    for fast, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(arithmetic, "is_fast", lambda dtype, device, fast=fast: fast)
        assert build.teacher(config, torch.device("cpu")).dtype == expected
