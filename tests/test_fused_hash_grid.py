"""The Triton kernels of the hash grid against their torch twin: interpreted on the CPU, compiled on a GPU."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
import torch

from carv3d.scenes import HashGrid, fused_hash_grid

HAS_TRITON = importlib.util.find_spec("triton") is not None


def compare(device: str) -> None:
    """Features and the table's gradient; dense levels, hashed ones, three features, points on the faces and outside."""
    with torch.no_grad():  # as the occupancy's refresh does, which comes first
        assert fused_hash_grid.problem(torch.device(device)) is None
    rng = torch.Generator(device).manual_seed(0)
    options = {"levels": 5, "features": 3, "log2_table": 8, "base_resolution": 3, "finest_resolution": 40}
    scene = HashGrid(generator=rng, bound=1.5, **options)  # type: ignore[arg-type]
    assert 0 < scene.dense_levels < 5
    with torch.no_grad():
        scene.table.normal_(generator=rng)
    points = 4 * torch.rand(300, 3, generator=rng, device=device) - 2
    points[:2] = torch.tensor([[1.5, -1.5, 1.5], [0.0, 0.0, 0.0]], device=device)
    weight = torch.randn(300, 15, generator=rng, device=device)
    unit = (points / 1.5 * 0.5 + 0.5).clamp(0, 1)
    found = []
    for features in (scene.encode(points), scene._encode(unit)):
        (gradient,) = torch.autograd.grad((features * weight).sum(), scene.table)
        found.append((features, gradient))
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed: pip install triton")
def test_interpreted_kernels_agree_with_torch() -> None:
    """In a process of its own, since Triton looks at the environment when it is imported."""
    code = "import os; os.environ['TRITON_INTERPRET'] = '1'; import tests.test_fused_hash_grid as t; t.compare('cpu')"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr[-2000:]


@pytest.mark.gpu
def test_kernels_agree_with_torch_on_a_gpu() -> None:
    compare("cuda")


def test_without_a_gpu_torch_is_used() -> None:
    assert fused_hash_grid.problem(torch.device("cpu")) == "it needs CUDA"
