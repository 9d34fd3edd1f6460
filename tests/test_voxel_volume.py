"""The fused volume rendering of a voxel grid against its torch twin, and what it is made of."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from carv3d.cameras import orbit
from carv3d.kernels import arithmetic, jit
from carv3d.renderers import Render, VolumeRenderer
from carv3d.renderers.config import RendererConfig
from carv3d.scenes import VoxelGrid
from carv3d.scenes.config import VoxelGridConfig

pytestmark = pytest.mark.skipif(jit.problem(torch.device("cpu")) is not None, reason="numba does not work here")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scene_of(resolution: int, strength: float, seed: int) -> VoxelGrid:
    """A blob with random densities and colours around it."""
    config = VoxelGridConfig(resolution=resolution, density_scale=20.0)
    scene = VoxelGrid(config, seeded(seed))
    with torch.no_grad():
        scene.grid.add_(strength * torch.randn(scene.grid.shape, generator=seeded(seed + 1)))
    return scene


def drawn(
    backend: Any,
    scene: VoxelGrid,
    *,
    samples: int = 24,
    share: float = 1.0,
    training: bool = True,
    normals: bool = False,
) -> tuple[Render, Tensor]:
    """The picture, and the gradient of a random loss on all that is summed."""
    renderer = VolumeRenderer(RendererConfig(backend=backend, samples=samples, occupancy_resolution=8))
    assert renderer.occupancy is not None
    renderer.occupancy.occupied = torch.rand(8, 8, 8, generator=seeded(4)) < share
    views = orbit(2, [-20.0, 50.0], start=13, height=24, width=20)
    scene.grid.grad = None
    render = renderer(scene, views, seeded(2), training=training, normals=normals)
    pull = seeded(3)
    pictures = (render.rgb, render.opacity, render.depth)
    sum(((x * torch.randn(x.shape, generator=pull)).mean() for x in pictures), torch.zeros(())).backward()
    assert scene.grid.grad is not None
    return render, scene.grid.grad


@given(
    resolution=st.integers(2, 20),
    strength=st.floats(0, 4),
    samples=st.integers(1, 70),
    share=st.sampled_from([0.3, 1.0]),
    seed=st.integers(0, 99),
)
@settings(max_examples=25)
def test_picture_and_gradient_are_torchs(
    resolution: int, strength: float, samples: int, share: float, seed: int
) -> None:
    """Any grid, mask and number of samples: rays end where 1e-4 of the light passes, so that no pixel differs more."""
    scene = scene_of(resolution, strength, seed)
    (theirs, reference), (ours, found) = (
        drawn(backend, scene, samples=samples, share=share) for backend in ("torch", "numba")
    )
    assert ours.samples is None and theirs.samples is not None  # the kernel was used
    assert (ours.rgb - theirs.rgb).abs().max() < 2e-4
    assert (ours.opacity - theirs.opacity).abs().max() < 2e-4
    hit = theirs.opacity > 0.01
    assert not hit.any() or (ours.depth - theirs.depth)[hit].abs().max() < 2e-2
    if float(reference.norm()) > 1e-6:
        assert float(torch.cosine_similarity(found.flatten(), reference.flatten(), 0)) > 0.9995
        assert float(found.norm() / reference.norm()) == pytest.approx(1, abs=5e-3)


def test_where_all_cells_are_empty_there_is_the_background() -> None:
    """And gradients of zero instead of an error."""
    render, gradient = drawn("numba", scene_of(8, 1.0, 0), share=0.0)
    assert (render.rgb == 1).all() and (render.opacity == 0).all() and (gradient == 0).all()


def test_gradient_has_no_bias() -> None:
    """Signed: differences from the twin have mean zero against their spread, and are small, channel by channel."""
    scene = scene_of(16, 1.0, 5)
    (_, reference), (_, found) = (drawn(backend, scene, samples=64) for backend in ("torch", "numba"))
    for channel in range(4):
        a, b = found[0, channel].double().flatten(), reference[0, channel].double().flatten()
        assert float((a - b).abs().max()) < 5e-3 * float(b.abs().max())
        assert float((a @ b) / (b @ b)) == pytest.approx(1, abs=1e-4)  # the part along the reference


def test_normals_are_torchs() -> None:
    """Of pictures that are looked at; in training a loss on normals takes the samples of torch."""
    scene = scene_of(12, 0.3, 1)
    pair = [drawn(backend, scene, samples=48, training=False, normals=True)[0] for backend in ("torch", "numba")]
    (theirs, ours) = (render.normal for render in pair)
    assert theirs is not None and ours is not None and pair[1].samples is None
    assert (ours - theirs).abs().max() < 5e-3 and theirs.abs().max() > 0.5
    trained, _ = drawn("numba", scene, normals=True)
    assert trained.samples is not None and trained.samples.normals is not None


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    """Bit for bit: a machine with more cores goes on with a run of another one."""
    scene, before, found = scene_of(16, 1.0, 7), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            render, gradient = drawn("numba", scene)
            found.append((render.rgb.detach(), gradient))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(rgb, found[0][0]) and torch.equal(grad, found[0][1]) for rgb, grad in found)


def test_what_is_not_finite_is_seen() -> None:
    """A diverged grid gives a picture that the loop's check refuses, as torch's does."""
    scene = scene_of(8, 0.1, 0)
    with torch.no_grad():
        scene.grid.fill_(math.nan)
    renderer = VolumeRenderer(RendererConfig(backend="numba", samples=16))
    assert renderer(scene, orbit(1, height=8, width=8), training=False).rgb.isnan().any()


@jit.compiled
def over(x: Any, expm1: Any, softplus: Any, sigmoid: Any) -> None:
    """The three functions of an array."""
    for i in range(len(x)):
        expm1[i] = arithmetic.expm1(x[i])
        softplus[i] = arithmetic.softplus(x[i])
        sigmoid[i] = arithmetic.sigmoid(x[i])


@given(st.lists(st.floats(-80, 80, width=32), min_size=1, max_size=40))
@settings(max_examples=40)
def test_elementary_functions(values: list[float]) -> None:
    """Within 5e-7 of float64's, near zero and far from it."""
    x = np.array([*values, 0.0, 1e-6, -1e-6, 20.0, -20.0], np.float32)
    found = [np.empty_like(x) for _ in range(3)]
    over(x, *found)
    exact = x.astype(np.float64)
    functions: list[Callable[..., Any]] = [np.expm1, lambda v: np.logaddexp(0, v), lambda v: 1 / (1 + np.exp(-v))]
    for ours, function in zip(found, functions, strict=True):
        np.testing.assert_allclose(ours, function(exact), rtol=1e-6, atol=1e-34)
    over(np.full(1, np.nan, np.float32), *found)
    assert all(np.isnan(each[0]) for each in found)


def test_a_cache_that_cannot_be_written_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The function is compiled for this process alone."""
    (tmp_path / "file").write_text("")
    for cache in (str(tmp_path / "file" / "below"), "/proc/none", str(tmp_path / "new")):
        monkeypatch.setenv("CARV3D_CACHE", cache)
        assert jit.compiled(lambda x: x + 1)(2) == 3
