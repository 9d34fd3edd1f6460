"""The kernels of the hash grid against their torch twin: numba's, and Triton's interpreted or compiled."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from carv3d.kernels import hash_grid, jit
from carv3d.scenes import HashGrid, fused_hash_grid
from carv3d.scenes.config import HashGridConfig

needs_numba = pytest.mark.skipif(jit.problem(torch.device("cpu")) is not None, reason="numba does not work here")
HAS_TRITON = importlib.util.find_spec("triton") is not None


def compare(device: str, kernel: Any = fused_hash_grid, seed: int = 0, points: int = 300, **changed: int) -> None:
    """Features and the table's gradient; dense levels, hashed ones, three features, points on the faces and outside."""
    with torch.no_grad():  # as the occupancy's refresh does, which comes first
        assert kernel.problem(torch.device(device)) is None
    rng = torch.Generator(device).manual_seed(seed)
    options = {"levels": 5, "features": 3, "log2_table": 8, "base_resolution": 3, "finest_resolution": 40} | changed
    scene = HashGrid(HashGridConfig(bound=1.5, **options), rng)  # type: ignore[arg-type]
    assert changed or 0 < scene.dense_levels < 5
    with torch.no_grad():
        scene.table.normal_(generator=rng)
    where = 4 * torch.rand(points, 3, generator=rng, device=device) - 2
    edges = torch.tensor([[1.5, -1.5, 1.5], [0.0, 0.0, 0.0]], device=device)
    where[:2] = edges[: len(where)]
    weight = torch.randn(points, options["levels"] * options["features"], generator=rng, device=device)
    found = []
    for features in (scene.encode(where), scene.encode(where, fused=False)):
        (gradient,) = torch.autograd.grad((features * weight).sum(), scene.table)
        found.append((features, gradient))
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)


@needs_numba
@given(
    levels=st.integers(1, 6),
    features=st.integers(1, 4),
    log2_table=st.integers(1, 12),
    base=st.integers(1, 9),
    more=st.integers(0, 300),
    points=st.integers(1, 400),
    seed=st.integers(0, 99),
)
@settings(max_examples=30)
def test_numbas_kernels_agree_with_torch(
    levels: int, features: int, log2_table: int, base: int, more: int, points: int, seed: int
) -> None:
    """Any layout of levels and tables."""
    layout = {"levels": levels, "features": features, "log2_table": log2_table}
    compare("cpu", hash_grid, seed, points, **layout, base_resolution=base, finest_resolution=base + more)


@needs_numba
def test_results_do_not_depend_on_the_number_of_threads() -> None:
    """Bit for bit: threads own whole levels, so that no two add to one row."""
    rng, before, found = torch.Generator().manual_seed(0), torch.get_num_threads(), []
    scene = HashGrid(HashGridConfig(log2_table=8, levels=6), rng)
    points = 2 * torch.rand(5000, 3, generator=rng) - 1
    weight = torch.randn(5000, 12, generator=rng)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            features = scene.encode(points)
            found.append([features.detach(), *torch.autograd.grad(features, [scene.table], weight)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found for a, b in zip(other, found[0], strict=True))


@needs_numba
def test_the_kernel_is_used_and_only_for_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    original = hash_grid.encode
    monkeypatch.setattr(hash_grid, "encode", lambda *a: (calls.append(1), original(*a))[1])
    scene = HashGrid(HashGridConfig(log2_table=8), torch.Generator().manual_seed(0))
    scene.encode(torch.zeros(1, 3))
    assert calls == [1]
    scene.double().encode(torch.zeros(1, 3, dtype=torch.float64))
    assert calls == [1]


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


def test_triton_needs_a_gpu() -> None:
    assert fused_hash_grid.problem(torch.device("cpu")) == "the fused hash grid needs a CUDA device"
