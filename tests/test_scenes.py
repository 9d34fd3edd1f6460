"""Fields: what they promise a renderer and an optimiser."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from carv3d.scenes import HashGrid, RadianceField, VoxelGrid
from carv3d.scenes.config import HashGridConfig, VoxelGridConfig


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def voxels(seed: int = 0, **options: float) -> RadianceField:
    return VoxelGrid(VoxelGridConfig(**{"resolution": 9, **options}), seeded(seed))  # type: ignore[arg-type]


def hashed(seed: int = 0, **options: float) -> RadianceField:
    # Three levels fit in the table of 512 entries densely (3^3, 4^3, 7^3 corners), three are hashed.
    small = {"levels": 6, "log2_table": 9, "base_resolution": 2, "finest_resolution": 32, "hidden": 16}
    return HashGrid(HashGridConfig(**{**small, **options}), seeded(seed))  # type: ignore[arg-type]


BOTH = pytest.mark.parametrize("make", [voxels, hashed])


def uniform(count: int, bound: float, seed: int = 1) -> Tensor:
    return (2 * torch.rand(count, 3, generator=seeded(seed)) - 1) * bound


@BOTH
@settings(max_examples=20, deadline=None)
@given(bound=st.floats(0.25, 4.0), seed=st.integers(0, 1000))
def test_query_is_in_range_and_empty_outside(make: Callable[..., RadianceField], bound: float, seed: int) -> None:
    """Renderers rely on density >= 0, rgb in [0, 1], and nothing beyond the cube, whatever its size."""
    scene = make(bound=bound)
    points = uniform(200, 2 * bound, seed)
    density, rgb = scene.query(points)
    assert density.shape == (200,) and rgb.shape == (200, 3)
    assert density.dtype == rgb.dtype == torch.float32
    outside = points.abs().amax(-1) > bound
    assert (density[outside] == 0).all() and (density >= 0).all()
    assert (scene.density(points * (0.1 / bound)) > 0).all()
    assert rgb.min() >= 0 and rgb.max() <= 1
    torch.testing.assert_close(scene.density(points), density)


@BOTH
def test_blob_is_densest_at_the_centre(make: Callable[..., RadianceField]) -> None:
    """Optimisation starts from a ball: density falls with the radius, and hardly depends on the direction."""
    scene = make()
    towards = torch.nn.functional.normalize(uniform(50, 1.0), dim=-1)
    shells = torch.stack([scene.density(radius * towards) for radius in (0.05, 0.3, 0.6, 0.95)])
    assert (shells.diff(dim=0) < 0).all()
    assert (shells.std(1) < 0.05 * shells.mean(1)).all()


def test_a_scene_that_lacks_a_method_is_not_made() -> None:
    """It would fail in the middle of a run, or when its mesh is wanted."""

    class Half(RadianceField):
        def query(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return points[:, 0], points

    with pytest.raises(TypeError, match="total_variation"):
        Half(bound=1.0, normal_step=0.1)  # type: ignore[abstract]


def test_voxel_grid_interpolates_its_corners() -> None:
    """A trilinear grid reproduces a linear function, and axis i of the grid is coordinate i of the points."""
    scene = VoxelGrid(VoxelGridConfig(resolution=5, bound=2.0, blob_density=0.0), seeded())
    axis = torch.linspace(-2, 2, 5)
    x, y, z = torch.meshgrid(axis, axis, axis, indexing="ij")
    with torch.no_grad():
        scene.grid[0, 0] = 5 + 0.5 * x - 0.25 * y + 1.5 * z
        scene.grid[0, 1], scene.grid[0, 2], scene.grid[0, 3] = x, y, z
    points = uniform(100, 2.0)
    density, rgb = scene.query(points)
    logit = 5 + points @ torch.tensor([0.5, -0.25, 1.5])
    torch.testing.assert_close(density, 6 * torch.nn.functional.softplus(logit))
    torch.testing.assert_close(rgb, points.sigmoid())


@BOTH
def test_same_generator_same_scene(make: Callable[..., RadianceField]) -> None:
    """Initialisation draws from the generator alone, never from torch's global state."""
    first = make(3).state_dict()
    torch.rand(7)
    for key, value in make(3).state_dict().items():
        assert torch.equal(first[key], value)
    before = torch.get_rng_state()
    make(4)
    assert torch.equal(before, torch.get_rng_state())


@BOTH
def test_gradients_match_finite_differences(make: Callable[..., RadianceField]) -> None:
    """Every parameter gets the gradient that moving it shows (the hash grid's backward is hand-written)."""
    scene = make().double()
    with torch.no_grad():
        for parameter in scene.parameters():  # away from the kinks of the initial near-zero features
            parameter.normal_(generator=seeded(4))
    points = uniform(40, 1.0).double()
    weights = torch.rand(40, 4, generator=seeded(2)).double()

    def loss() -> Tensor:
        density, rgb = scene.query(points)
        return (torch.cat([density[:, None], rgb], 1) * weights).sum()

    loss().backward()
    for parameter in scene.parameters():
        assert parameter.grad is not None
        direction = torch.randn(parameter.shape, generator=seeded(3)).double()
        expected = (parameter.grad * direction).sum()
        step = 1e-6
        with torch.no_grad():
            parameter.add_(direction, alpha=step)
            up = loss()
            parameter.add_(direction, alpha=-2 * step)
            down = loss()
            parameter.add_(direction, alpha=step)
        assert expected.abs() > 1e-6
        torch.testing.assert_close((up - down) / (2 * step), expected, rtol=1e-4, atol=1e-7)


def test_hash_grid_is_continuous_across_cells() -> None:
    """A wrong corner or weight would show as a jump where a cell ends; dense and hashed levels alike."""
    scene = hashed()
    with torch.no_grad():
        scene.table.normal_(generator=seeded(5))  # type: ignore[operator]
    for cells in (2, 3, 6, 32):
        faces = torch.arange(1, cells) / cells * 2 - 1
        points = uniform(len(faces), 0.9)
        for axis in range(3):
            below, above = points.clone(), points.clone()
            below[:, axis], above[:, axis] = faces - 1e-5, faces + 1e-5
            step = (scene.encode(below) - scene.encode(above)).abs().max()  # type: ignore[operator]
            assert step < 5e-3


def test_hash_grid_dense_level_interpolates_its_corners() -> None:
    """A dense level is a plain grid: corners holding their own coordinates give them back, faces included."""
    scene = HashGrid(
        HashGridConfig(levels=1, features=3, log2_table=7, base_resolution=4, finest_resolution=4), seeded()
    )
    axis = torch.linspace(-1, 1, 5)
    with torch.no_grad():
        scene.table.copy_(torch.cartesian_prod(axis, axis, axis))
    points = torch.cat([uniform(100, 1.0), torch.cartesian_prod(axis, axis, axis)])
    torch.testing.assert_close(scene.encode(points), points, atol=1e-5, rtol=0)


def test_hash_spreads_corners_over_the_whole_table() -> None:
    """A good hash of 35,937 corners uses 89 % of 16,384 entries, this one 75 %, one without z 7 %."""
    scene = HashGrid(HashGridConfig(levels=1, log2_table=14, base_resolution=32, finest_resolution=32), seeded())
    axis = torch.linspace(-1, 1, 33)
    scene.encode(torch.cartesian_prod(axis, axis, axis)).sum().backward()
    assert scene.table.grad is not None
    used = (scene.table.grad[:, 0] > 0.5).double().mean().item()
    assert used > 0.6


def test_hash_grid_fine_levels_collide_and_coarse_do_not() -> None:
    """Coarse levels own an entry for every corner; the table stays within its budget."""
    scene = HashGrid(
        HashGridConfig(levels=4, log2_table=10, base_resolution=4, finest_resolution=64, hidden=8), seeded()
    )
    assert scene.dense_levels == 1  # 5^3 fits in 1,024 entries; 11^3, 26^3 and 65^3 do not
    assert scene.table.shape == (5**3 + 3 * 1024, 2)
    assert scene.encode(uniform(10, 1.0)).shape == (10, 8)


@BOTH
def test_normals_of_the_blob_point_outward(make: Callable[..., RadianceField]) -> None:
    """The blob's density falls with the radius: its normals are radial."""
    scene = make()
    towards = torch.nn.functional.normalize(uniform(100, 1.0), dim=-1)
    normals = scene.normal(0.5 * towards)
    torch.testing.assert_close(normals.norm(dim=-1), torch.ones(100))
    assert (normals * towards).sum(-1).min() > 0.95


@BOTH
def test_total_variation_and_learning_rates_reach_every_parameter(make: Callable[..., RadianceField]) -> None:
    """TV is a positive scalar with a gradient; each parameter is in one group, so that none stays frozen."""
    scene = make()
    value = scene.total_variation()
    value.backward()
    assert value.shape == () and value > 0
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in scene.parameters())
    grouped = [id(p) for group in scene.parameter_groups(0.01) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in scene.parameters())
    torch.optim.Adam(scene.parameter_groups(0.01)).step()


def test_total_variation_of_voxels_is_zero_for_the_untouched_blob() -> None:
    """The prior pulls towards the blob, not towards fog: the density's constant logit costs nothing."""
    scene = VoxelGrid(VoxelGridConfig(resolution=6), seeded())
    with torch.no_grad():
        scene.grid.fill_(1.5)
    assert scene.total_variation() == 0
    with torch.no_grad():
        scene.grid[0, 0, 3:] += 2.0  # one face of 36 of the 180 pairs along x, in one of 4 channels
    assert scene.total_variation().item() == pytest.approx(4.0 / 5 / 4)


def test_hash_grid_total_variation_moves_on_and_resumes() -> None:
    """Its points differ from step to step, and a reloaded scene goes on with the same ones."""
    scene, other = hashed(), hashed(1)
    with torch.no_grad():
        scene.table.normal_(generator=seeded(5))  # type: ignore[operator]
    first = scene.total_variation()
    scene.after_step(0, 0.0, None, seeded())
    assert scene.total_variation() != first
    other.load_state_dict(scene.state_dict())
    assert torch.equal(other.total_variation(), scene.total_variation())
