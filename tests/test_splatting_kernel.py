"""The fused blending of Gaussians against its torch twin."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from carv3d.kernels import jit
from carv3d.kernels import splatting as kernel
from carv3d.renderers import Render, SplatRenderer
from carv3d.renderers.config import RendererConfig
from carv3d.renderers.splatting import ALPHA_LEAST, ALPHA_MOST
from carv3d.scenes import Gaussians
from tests.gaussians import cameras, cloud, seeded

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(jit.problem(torch.device("cpu")) is not None, reason="numba does not work here")


def drawn(backend: Any, scene: Gaussians, *, count: int = 2, size: int = 20) -> tuple[Render, list[Tensor]]:
    """The pictures, and the gradients of a random loss on all of them by every parameter, and by the centres."""
    views = cameras(count, size)
    views = replace(views, c2w=views.c2w.float(), intrinsics=views.intrinsics.float())
    scene.zero_grad()
    render: Render = SplatRenderer(RendererConfig(backend=backend))(scene, views, training=False)
    pull = seeded(3)
    pictures = (render.rgb, render.opacity, 0.1 * render.depth * (render.opacity > 0.1))
    sum(((x * torch.randn(x.shape, generator=pull)).mean() for x in pictures), torch.zeros(())).backward()
    assert render.projection is not None and render.projection.centres.grad is not None
    return render, [*(p.grad.clone() for p in scene.parameters() if p.grad is not None), render.projection.centres.grad]


@given(
    count=st.integers(1, 200),
    views=st.integers(1, 5),
    size=st.integers(1, 48),
    spread=st.sampled_from([0.01, 0.1, 1.0]),
    degree=st.sampled_from([0, 1]),
    seed=st.integers(0, 99),
)
@settings(max_examples=40)
def test_picture_and_gradient_are_torchs(
    count: int, views: int, size: int, spread: float, degree: int, seed: int
) -> None:
    """Any number, size and direction of Gaussians, also those that cover more pixels than a block has."""
    scene = cloud(count, degree=degree, seed=seed, spread=spread).float()
    (theirs, reference), (ours, found) = (
        drawn(backend, scene, count=views, size=size) for backend in ("torch", "numba")
    )
    for a, b in ((ours.rgb, theirs.rgb), (ours.opacity, theirs.opacity)):
        torch.testing.assert_close(a, b, atol=5e-5, rtol=0)
    for a, b in zip(found, reference, strict=True):
        # A pair whose opacity is 1/255 to rounding is kept by one and dropped by the other.
        assert float((a - b).norm()) <= 5e-3 * float(b.norm()) + 1e-6


def test_gradient_has_no_bias() -> None:
    """Signed: the part of each gradient along the twin's is one."""
    scene = cloud(500, degree=1, seed=5).float()
    (_, reference), (_, found) = (drawn(backend, scene, size=64) for backend in ("torch", "numba"))
    for a, b in zip(found, reference, strict=True):
        assert float((a * b).double().sum() / b.double().square().sum()) == pytest.approx(1, abs=2e-4)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The arguments of the kernel's calls."""
    found: list[tuple[Any, ...]] = []
    original = kernel.composite

    def note(*arguments: Any, **options: Any) -> Tensor:
        found.append(arguments)
        return original(*arguments, **options)

    monkeypatch.setattr(kernel, "composite", note)
    return found


def test_the_kernel_is_used_and_only_for_float32(calls: list[tuple[Any, ...]]) -> None:
    """In float64, as the tests of formulas ask for, torch blends."""
    drawn("numba", cloud(5).float())
    assert len(calls) == 1
    SplatRenderer(RendererConfig(backend="numba"))(cloud(5), cameras(1), training=False)
    assert len(calls) == 1


def test_results_do_not_depend_on_the_number_of_threads(calls: list[tuple[Any, ...]]) -> None:
    """Bit for bit, picture and gradients: a machine with more cores goes on with a run of another one."""
    drawn("numba", cloud(300).float(), size=40)
    *values, boxes = calls[0]
    values = [value.detach().requires_grad_() for value in values]
    pull, before, found = torch.randn(2 * 40 * 43, 5, generator=seeded(3)), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            picture = kernel.composite(*values, boxes, least=ALPHA_LEAST, most=ALPHA_MOST)
            found.append([picture.detach(), *torch.autograd.grad(picture, values, pull)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found for a, b in zip(other, found[0], strict=True))


_FIRST_USE = """
import hashlib, torch
from carv3d.kernels import splatting
from carv3d.renderers import SplatRenderer
from tests.gaussians import cloud
from tests.test_splatting_kernel import drawn
render, gradients = drawn("numba", cloud(200).float(), size=30)
print(hashlib.sha256(b"".join(x.detach().numpy().tobytes() for x in [render.rgb, *gradients])).hexdigest())
"""


def test_the_first_use_gives_the_numbers_of_later_ones(tmp_path: Path) -> None:
    """The processes that compile, two at once, compute as those that find the machine code: else a resumed run would
    differ. Parts of a kernel that are not compiled into it are found by name, in whatever a process has compiled.
    """
    settings = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", _FIRST_USE]
    pair = [subprocess.Popen(command, env=settings, cwd=ROOT, text=True, stdout=subprocess.PIPE) for _ in range(2)]
    said = [process.communicate()[0] for process in pair]
    said.append(subprocess.check_output(command, env=settings, cwd=ROOT, text=True))
    assert len(set(said)) == 1 and len(said[0]) == 65 and list(tmp_path.rglob("*.nbc"))


def test_nothing_to_see_is_the_background() -> None:
    """All Gaussians behind the camera, and gradients of zero instead of an error."""
    scene = cloud(5).float()
    with torch.no_grad():
        scene.positions.add_(1000)
    render, gradients = drawn("numba", scene)
    assert (render.rgb == 1).all() and (render.opacity == 0).all()
    assert all((gradient == 0).all() for gradient in gradients)
