"""The packed rendering against the torch one: on stand-ins of nerfacc's kernels everywhere, on the kernels on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from carv3d.cameras import Cameras
from carv3d.errors import UserError
from carv3d.renderers import Render, VolumeRenderer, compositing, nerfacc_backend
from carv3d.renderers.config import RendererConfig
from carv3d.renderers.occupancy import Occupancy
from carv3d.renderers.rays import Rays
from carv3d.scenes import HashGrid, RadianceField, VoxelGrid
from carv3d.scenes.config import HashGridConfig, VoxelGridConfig
from tests import nerfacc_kernels

KINDS = ["voxels", "hash"]
needs_nerfacc = pytest.mark.skipif(find_spec("nerfacc") is None, reason="nerfacc is not installed")


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    nerfacc_kernels.use(monkeypatch)


@pytest.fixture(scope="module")
def stand_ins_for_all() -> Iterator[None]:
    """For hypothesis, whose examples share what is set up for one test."""
    with pytest.MonkeyPatch.context() as patch:
        nerfacc_kernels.use(patch)
        yield


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cameras(azimuth: float = 30.0, elevation: float = 20.0, **options: Any) -> Cameras:
    return Cameras.look_at_origin(torch.tensor([azimuth]), torch.tensor([elevation]), **options)


def field(kind: str, seed: int = 0) -> RadianceField:
    """With enough in it everywhere for any difference to be seen."""
    if kind == "voxels":
        scene: RadianceField = VoxelGrid(VoxelGridConfig(resolution=8, bound=1.2), seeded(seed))
    else:
        small = {"levels": 3, "log2_table": 8, "base_resolution": 4, "finest_resolution": 16, "hidden": 8}
        scene = HashGrid(HashGridConfig(bound=1.2, **small), seeded(seed))  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in scene.parameters():
            parameter += 0.5 * torch.randn(parameter.shape, generator=seeded(seed + 1))
    return scene


def drawn(
    backend: str, scene: RadianceField, views: Cameras, occupied: Tensor | None, samples: int, **options: Any
) -> tuple[Render, list[Tensor]]:
    """A render with normals, and the gradients of a loss on all that it returns."""
    renderer = VolumeRenderer(
        RendererConfig(samples=samples, occupancy_resolution=0 if occupied is None else len(occupied))
    )
    renderer.backend = backend
    renderer.to(views.c2w.device)
    if renderer.occupancy is not None and occupied is not None:
        renderer.occupancy.occupied = occupied
    render = renderer(scene, views, seeded(2), normals=True, **options)
    assert render.normal is not None and render.samples is not None and render.samples.normals is not None
    looked_at = [render.rgb, render.opacity, render.depth, render.normal, render.samples.weights]
    pull = seeded(3)
    loss = sum(
        ((x * torch.randn(x.shape, generator=pull).to(x)).mean() for x in looked_at), torch.zeros(()).to(views.c2w)
    )
    parameters = list(scene.parameters())
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return render, [g for g in found if g is not None]


def assert_alike(one: tuple[Render, list[Tensor]], other: tuple[Render, list[Tensor]]) -> None:
    (a, of_a), (b, of_b) = one, other
    assert a.samples is not None and b.samples is not None
    assert torch.equal(a.samples.ray, b.samples.ray)
    for name in ("t", "directions", "weights", "normals"):
        torch.testing.assert_close(getattr(b.samples, name), getattr(a.samples, name), atol=1e-5, rtol=1e-5)
    for name in ("rgb", "opacity", "depth", "normal"):
        torch.testing.assert_close(getattr(b, name), getattr(a, name), atol=2e-5, rtol=1e-5)
    assert len(of_a) == len(of_b) > 0
    for mine, theirs in zip(of_a, of_b, strict=True):
        torch.testing.assert_close(theirs, mine, atol=1e-5 * float(mine.abs().max()) + 1e-9, rtol=1e-4)


def off_faces(rays: Rays, index: Tensor, cells: int, bound: float, margin: float = 1e-4) -> Tensor:
    """(M,) bool: which samples lie clearly inside their cell, by `margin` of its side, where rounding cannot decide."""
    place = (rays.at(index)[2] / bound + 1) * (cells / 2)
    return ((place - place.round()).abs() > margin).all(-1)


@needs_nerfacc
@settings(max_examples=30)
@given(
    azimuth=st.floats(-180, 180),
    elevation=st.floats(-89, 89),
    distance=st.floats(0.1, 5.0),
    fov=st.floats(20, 120),
    samples=st.integers(1, 24),
    cells=st.integers(1, 9),
    share=st.floats(0, 1),
    jitter=st.booleans(),
)
def test_the_walk_through_the_cells_keeps_the_same_samples(
    stand_ins_for_all: None,
    azimuth: float,
    elevation: float,
    distance: float,
    fov: float,
    samples: int,
    cells: int,
    share: float,
    jitter: bool,
) -> None:
    """Any camera, inside the cube too, any occupancy and number of samples; at cells' faces rounding decides."""
    views = cameras(azimuth, elevation, distance=distance, fov=fov, height=7, width=6)
    origins, directions = (x.reshape(-1, 3) for x in views.rays())
    rays = Rays.through(origins, directions, 1.2, samples, seeded() if jitter else None)
    occupancy = Occupancy(resolution=cells, threshold=0.1)
    occupancy.occupied = torch.rand(cells, cells, cells, generator=seeded(1)) < share
    found = [backend.kept(rays, occupancy, 1.2) for backend in (compositing, nerfacc_backend)]
    clear = [index[off_faces(rays, index, cells, 1.2)] for index in found]
    assert torch.equal(*clear)
    assert all((index.diff() > 0).all() for index in found)


@needs_nerfacc
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=8)
@given(
    azimuth=st.floats(-180, 180),
    elevation=st.floats(-80, 80),
    samples=st.integers(1, 24),
    share=st.floats(0.1, 1),
    training=st.booleans(),
)
def test_packed_equals_dense(
    stand_ins_for_all: None, kind: str, azimuth: float, elevation: float, samples: int, share: float, training: bool
) -> None:
    """Picture, depth, opacity, normals, samples and gradients, for any view, occupancy and number of samples.

    Where a sample is on a cell's face everything is occupied: what rounding decides there is tested above.
    """
    scene, views = field(kind), cameras(azimuth, elevation, height=6, width=6)
    occupied = torch.rand(5, 5, 5, generator=seeded(4)) < share
    rays = Rays.through(*(x.reshape(-1, 3) for x in views.rays()), 1.2, samples, seeded(2) if training else None)
    everything = compositing.kept(rays, None, 1.2)
    if not off_faces(rays, everything, 5, 1.2, margin=1e-5).all():
        occupied = torch.ones_like(occupied)
    found = [drawn(backend, scene, views, occupied, samples, training=training) for backend in ("torch", "nerfacc")]
    assert_alike(*found)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("half_empty", [False, True])
def test_packed_equals_dense_at_a_real_size(stand_ins: None, kind: str, half_empty: bool) -> None:
    """16 x 16 pixels, 64 samples a ray, with and without a mask."""
    occupied = (torch.rand(16, 16, 16, generator=seeded(5)) < 0.5) if half_empty else None
    views = cameras(height=16, width=16)
    found = [drawn(backend, field(kind), views, occupied, 64) for backend in ("torch", "nerfacc")]
    assert_alike(*found)
    samples = found[1][0].samples
    assert samples is not None
    hit = drawn("torch", field(kind), views, None, 64)[0].samples
    assert hit is not None
    share = len(samples.ray) / len(hit.ray)
    assert 0.4 < share < 0.6 if half_empty else share == 1.0


def test_a_view_of_nothing_still_trains(stand_ins: None) -> None:
    """No occupied cell: the background, and gradients of zero instead of an error."""
    nothing = torch.zeros(4, 4, 4, dtype=torch.bool)
    views = cameras(fov=120.0, height=8, width=8)
    render, gradients = drawn("nerfacc", field("voxels"), views, nothing, 8)
    assert (render.rgb == 1).all() and all((g == 0).all() for g in gradients)


def test_float64_is_not_the_kernels(stand_ins: None) -> None:
    """nerfacc's scans read float32 whatever they are given; the stand-ins do not hide that."""
    rays = Rays.through(torch.tensor([[0.0, 0, -3]]).double(), torch.tensor([[0.0, 0, 1]]).double(), 1.0, 4, None)
    with pytest.raises(AssertionError):
        nerfacc_backend.kept(rays, None, 1.0)


@needs_nerfacc
def test_asked_for_without_cuda_it_is_refused() -> None:
    """Before anything is imported or built; auto is another one."""
    cpu = torch.device("cpu")
    assert VolumeRenderer(RendererConfig(), device=cpu).backend == "numba"
    with pytest.raises(UserError, match=r"renderer\.backend=nerfacc, but nerfacc needs a CUDA device: use renderer"):
        VolumeRenderer(RendererConfig(backend="nerfacc"), device=cpu)
    with pytest.raises(ValueError, match="auto, torch, nerfacc, numba"):
        VolumeRenderer(RendererConfig(backend="gsplat"), device=cpu)


@pytest.mark.gpu
@needs_nerfacc
def test_the_kernel_keeps_the_same_samples() -> None:
    """On CUDA, nerfacc's own walk; at cells' faces rounding decides."""
    device = torch.device("cuda")
    assert nerfacc_backend.problem(device) is None
    for seed in range(20):
        draw = seeded(seed)
        azimuth, elevation, distance = (torch.rand(3, generator=draw) * torch.tensor([360.0, 80.0, 4.0])).tolist()
        views = cameras(azimuth, elevation, distance=0.1 + distance, height=64, width=64).to(device)
        origins, directions = (x.reshape(-1, 3) for x in views.rays())
        rays = Rays.through(origins, directions, 1.2, 64, draw if seed % 2 else None)
        occupancy = Occupancy(resolution=16, threshold=0.1)
        occupancy.occupied = torch.rand(16, 16, 16, generator=draw) < 0.5
        occupancy.to(device)
        found = [backend.kept(rays, occupancy, 1.2) for backend in (compositing, nerfacc_backend)]
        assert torch.equal(*(index[off_faces(rays, index, 16, 1.2)] for index in found))


@pytest.mark.gpu
@needs_nerfacc
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("half_empty", [False, True])
def test_the_kernels_agree_with_torch(kind: str, half_empty: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA: pictures and gradients of nerfacc's own kernels, from the same samples."""
    device = torch.device("cuda")
    assert nerfacc_backend.problem(device) is None
    occupied = None
    if half_empty:
        occupied = (torch.rand(16, 16, 16, generator=seeded(5)) < 0.5).to(device)
        monkeypatch.setattr(nerfacc_backend, "kept", compositing.kept)
    scene, views = field(kind).to(device), cameras(height=64, width=64).to(device)
    assert_alike(*(drawn(backend, scene, views, occupied, 64) for backend in ("torch", "nerfacc")))
