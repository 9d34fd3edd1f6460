"""The Triton kernels of the hash grid against their torch twin: interpreted on the CPU, compiled on a GPU."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from carv3d.scenes import HashGrid, fused_hash_grid
from carv3d.scenes.config import HashGridConfig

HAS_TRITON = importlib.util.find_spec("triton") is not None


def compare(device: str) -> None:
    """Features and the table's gradient; dense levels, hashed ones, three features, points on the faces and outside."""
    with torch.no_grad():  # as the occupancy's refresh does, which comes first
        assert fused_hash_grid.problem(torch.device(device)) is None
    rng = torch.Generator(device).manual_seed(0)
    options = {"levels": 5, "features": 3, "log2_table": 8, "base_resolution": 3, "finest_resolution": 40}
    scene = HashGrid(HashGridConfig(bound=1.5, **options), rng)  # type: ignore[arg-type]
    assert 0 < scene.dense_levels < 5
    with torch.no_grad():
        scene.table.normal_(generator=rng)
    points = 4 * torch.rand(300, 3, generator=rng, device=device) - 2
    points[:2] = torch.tensor([[1.5, -1.5, 1.5], [0.0, 0.0, 0.0]], device=device)
    weight = torch.randn(300, 15, generator=rng, device=device)
    found = []
    for features in (scene.encode(points), scene.encode(points, fused=False)):
        (gradient,) = torch.autograd.grad((features * weight).sum(), scene.table)
        found.append((features, gradient))
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed: pip install triton")
def test_interpreted_kernels_agree_with_torch() -> None:
    """In a process of its own, since Triton looks at the environment when it is imported."""
    code = "import os; os.environ['TRITON_INTERPRET'] = '1'; import tests.test_fused_hash_grid as t; t.compare('cpu')"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr[-2000:]


@pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed: pip install triton")
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_for_gpus_that_are_not_here(
    capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interpreting proves nothing about the compiler: PTX and machine code for an A100 and an H100."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))  # compiled anew, and not among the user's
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    arrays = {
        fused_hash_grid._forward: ("points", "table", "out"),
        fused_hash_grid._backward: ("points", "grad", "grad_table"),
    }
    for kernel, names in arrays.items():
        types = dict.fromkeys(names, "*fp32") | dict.fromkeys(("cells_of", "starts"), "*i64")
        types |= dict.fromkeys(("count", "mask", "dense", "levels"), "i32")
        constants = {"features": 2, "block": fused_hash_grid._BLOCK}
        source = ASTSource(fn=kernel, signature=types | dict.fromkeys(constants, "constexpr"), constexprs=constants)
        found = triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm
        assert f".target sm_{capability}" in found["ptx"]
        assert found["cubin"][:4] == b"\x7fELF"
        adds = "atom.global" in found["ptx"] or "red.global" in found["ptx"]
        assert adds is (kernel is fused_hash_grid._backward)


@pytest.mark.gpu
def test_kernels_agree_with_torch_on_a_gpu() -> None:
    compare("cuda")


def test_without_a_gpu_torch_is_used() -> None:
    assert fused_hash_grid.problem(torch.device("cpu")) == "the fused hash grid needs a CUDA device"
