"""Volume rendering against closed forms, and its promises to the training loop."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from carv3d.cameras import Cameras
from carv3d.renderers import Render, VolumeRenderer
from carv3d.renderers.config import RendererConfig
from carv3d.renderers.rays import Rays
from carv3d.scenes import HashGrid, RadianceField, VoxelGrid
from carv3d.scenes.config import HashGridConfig, VoxelGridConfig

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Solid(RadianceField):
    """Constant density and colour inside a ball or a box."""

    def __init__(self, *, density: float, radius: float = 0.0, centre: Any = (0, 0, 0), box: Any = None) -> None:
        super().__init__(bound=1.0, normal_step=0.02)
        self.inner = torch.nn.Parameter(torch.tensor(density))
        self.radius, self.centre, self.box = radius, torch.tensor(centre).float(), box

    def query(self, points: Tensor) -> tuple[Tensor, Tensor]:
        offset = points - self.centre.to(points)
        if self.box is None:
            within = offset.norm(dim=-1) < self.radius
        else:
            within = (offset.abs() < points.new_tensor(self.box)).all(-1)
        return self.inner * within, points.new_tensor([0.9, 0.2, 0.1]).expand(len(points), 3)

    def total_variation(self) -> Tensor:
        return self.inner.new_zeros(())


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def camera(azimuth: float = 30.0, elevation: float = 20.0, **options: Any) -> Cameras:
    options = {"height": 24, "width": 24, **options}
    return Cameras.look_at_origin(torch.tensor([azimuth]), torch.tensor([elevation]), **options)


def voxels(resolution: int = 12) -> VoxelGrid:
    return VoxelGrid(VoxelGridConfig(resolution=resolution), seeded())


def object_in_a_corner() -> VoxelGrid:
    """A voxel scene that is empty but for a block away from the centre."""
    scene = voxels(24)
    with torch.no_grad():
        scene.grid[:, 0] = -40.0
        scene.grid[:, 0, 15:20, 4:9, 14:20] = 12.0
    return scene


def chords(cameras: Cameras, radius: float) -> Tensor:
    """(R, 1, H, W) length of every pixel's ray inside the ball of that radius around the origin."""
    origins, directions = cameras.rays()
    along = (origins * directions).sum(-1)
    return 2 * (along**2 - (origins**2).sum(-1) + radius**2).clamp_min(0).sqrt()[:, None]


def near_and_far(cameras: Cameras, half: float) -> tuple[Tensor, Tensor]:
    """Slab intersections of every pixel's ray with the cube of half side `half`, in float64."""
    origins, directions = (rays.double() for rays in cameras.rays())
    a, b = (-half - origins) / directions, (half - origins) / directions
    return torch.minimum(a, b).amax(-1)[:, None], torch.maximum(a, b).amin(-1)[:, None]


@settings(max_examples=15, deadline=None)
@given(density=st.floats(0.01, 30.0), azimuth=st.floats(-180, 180), elevation=st.floats(-80, 80))
def test_cube_of_constant_density_is_exact(density: float, azimuth: float, elevation: float) -> None:
    """The intervals fill the cube exactly: opacity is 1 - exp(-density * chord) for any step and view."""
    cameras = camera(azimuth, elevation, height=12, width=12)
    render = VolumeRenderer(RendererConfig(samples=7))(
        Solid(density=density, box=(1.0, 1.0, 1.0)), cameras, training=False
    )
    near, far = near_and_far(cameras, 1.0)
    expected = 1 - torch.exp(-density * (far - near).clamp_min(0))
    torch.testing.assert_close(render.opacity.double(), expected, atol=2e-4, rtol=0)


def test_samples_are_midpoints_when_not_training() -> None:
    """The expected depth of a thin fog is the middle of its chord, even with few samples."""
    cameras = camera()
    render = VolumeRenderer(RendererConfig(samples=5))(
        Solid(density=1e-3, box=(1.0, 1.0, 1.0)), cameras, training=False
    )
    near, far = near_and_far(cameras, 1.0)
    seen = render.opacity > 5e-4
    torch.testing.assert_close(render.depth[seen].double(), ((near + far) / 2)[seen], atol=1e-3, rtol=0)


@pytest.mark.parametrize("noise", [None, seeded()])
def test_the_samples_asked_of_the_scene_are_those_that_the_mask_is_asked_for(noise: torch.Generator | None) -> None:
    """One by one and all at once they are the same numbers, each in its interval of the ray's stretch in the cube."""
    cameras = camera(height=6, width=5)
    rays = Rays.through(*(x.reshape(-1, 3) for x in cameras.rays()), 1.0, 7, noise)
    index = torch.arange(30 * 7)[::3]
    ray, t, points = rays.at(index)
    assert torch.equal(t, rays.distances().view(-1)[index]) and torch.equal(ray, index // 7)
    torch.testing.assert_close(points, rays.origins[ray] + t[:, None] * rays.directions[ray])
    near, far = (x.flatten()[ray] for x in near_and_far(cameras, 1.0))
    share = (t.double() - near) / (far - near).clamp_min(0.1) * 7 - index % 7
    hit = far > near + 0.1
    assert hit.any() and ((share[hit] > -1e-4) & (share[hit] < 1 + 1e-4)).all()
    assert noise is not None or ((share[hit] - 0.5).abs() < 1e-3).all()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("density", [0.3, 2.0, 50.0])
def test_opacity_of_a_ball_follows_its_chord(density: float, training: bool) -> None:
    """Opacity is 1 - exp(-density * chord), up to the step at either end of the chord."""
    cameras, samples = camera(), 400
    renderer = VolumeRenderer(RendererConfig(samples=samples))
    render = renderer(Solid(density=density, radius=0.6), cameras, seeded(), training=training)
    chord = chords(cameras, 0.6)
    step = 2 * math.sqrt(3) / samples
    low = 1 - torch.exp(-density * (chord - 2 * step).clamp_min(0))
    high = 1 - torch.exp(-density * torch.where(chord > 0, chord + 2 * step, 0))
    assert (render.opacity >= low - 1e-5).all() and (render.opacity <= high + 1e-5).all()
    assert (render.opacity[chord == 0] == 0).all()


def test_weights_sum_to_opacity_and_pixels_mix_colour_and_background() -> None:
    """What is not opacity is background, exactly."""
    render = VolumeRenderer(RendererConfig(samples=32, background=[0.0, 0.25, 1.0]))(
        Solid(density=3.0, radius=0.7), camera(), training=False
    )
    assert render.samples is not None
    samples = render.samples
    sums = torch.zeros(len(samples.directions)).index_add(0, samples.ray, samples.weights)
    torch.testing.assert_close(sums, render.opacity.flatten())
    mixed = [render.opacity * a + (1 - render.opacity) * b for a, b in ((0.9, 0.0), (0.2, 0.25), (0.1, 1.0))]
    torch.testing.assert_close(render.rgb, torch.cat(mixed, 1))


def test_depth_of_an_opaque_ball() -> None:
    """Depth is the distance to the surface within a step; beyond the scene where nothing is hit."""
    cameras, samples = camera(), 200
    render = VolumeRenderer(RendererConfig(samples=samples))(Solid(density=1e4, radius=0.6), cameras, training=False)
    origins, directions = cameras.rays()
    chord = chords(cameras, 0.6)
    surface = -(origins * directions).sum(-1)[:, None] - chord / 2
    solid = chord > 0.1
    assert (render.depth - surface)[solid].abs().max() < 2 * math.sqrt(3) / samples
    assert (render.depth[chord == 0] > 3 + 1).all()


def test_normals_of_a_ball_point_outward() -> None:
    """At the surface the normal is radial; in the image it is weighted by opacity."""

    class Soft(Solid):
        def query(self, points: Tensor) -> tuple[Tensor, Tensor]:
            density = 100 * torch.sigmoid((0.6 - points.norm(dim=-1)) / 0.02)
            return density, torch.full_like(points, 0.5)

    cameras = camera()
    render = VolumeRenderer(RendererConfig(samples=200))(Soft(density=0.0), cameras, training=False, normals=True)
    origins, directions = cameras.rays()
    surface = origins + render.depth[:, 0, :, :, None] * directions
    outward = torch.nn.functional.normalize(surface, dim=-1).permute(0, 3, 1, 2)
    full = (chords(cameras, 0.6) > 0.3).expand(-1, 3, -1, -1)
    assert render.normal is not None and render.samples is not None and render.samples.normals is not None
    torch.testing.assert_close(render.normal[full], outward[full], atol=0.03, rtol=0)
    assert (render.normal.norm(dim=1, keepdim=True) <= render.opacity + 1e-5).all()
    assert render.samples.normals.shape == (len(render.samples.ray), 3)


def centre_of(render: Render) -> tuple[float, float]:
    """(row, column) of the opacity's centroid from the image's centre, pixels; down and right positive."""
    opacity = render.opacity[0, 0].detach()
    height, width = opacity.shape
    rows, columns = torch.arange(height) + 0.5 - height / 2, torch.arange(width) + 0.5 - width / 2
    mass = opacity.sum()
    return float((opacity.sum(1) * rows).sum() / mass), float((opacity.sum(0) * columns).sum() / mass)


@pytest.mark.parametrize(
    ("azimuth", "centre", "row", "column"),
    [
        (0, (0, 0, 0.5), -1, 0),  # z is up in the image
        (0, (0, 0.5, 0), 0, 1),  # from the front (+x), +y is on the right
        (90, (0.5, 0, 0), 0, -1),  # from +y, +x is on the left
        (180, (0, 0.5, 0), 0, -1),  # from the back, +y is on the left
        (90, (0, 0.5, 0), 0, 0),  # +y faces a camera at azimuth 90
    ],
)
def test_an_object_appears_where_it_should(azimuth: float, centre: Any, row: int, column: int) -> None:
    """Mirrored or swapped axes would train upside-down or inside-out objects without any error."""
    scene = Solid(density=100.0, radius=0.2, centre=centre)
    found = centre_of(VolumeRenderer(RendererConfig())(scene, camera(azimuth, 0.0), training=False))
    # Half a unit at distance 3, with 24 pixels over 2 * 3 * tan(20 degrees) units.
    expected = 0.5 * 24 / (6 * math.tan(math.radians(20)))
    assert found == pytest.approx((row * expected, column * expected), abs=0.3)


def test_rays_that_miss_the_cube_show_the_background() -> None:
    """Also from inside the cube, and for rays parallel to its faces: no NaN, no sample behind the camera."""
    scene = Solid(density=5.0, box=(1.0, 1.0, 1.0))
    wide = VolumeRenderer(RendererConfig(samples=8))(
        scene, camera(0, 0, fov=120.0, height=25, width=25), training=False
    )
    assert (wide.rgb[0, :, 0, 0] == 1).all() and wide.opacity[0, 0, 12, 12] > 0.99
    inside = VolumeRenderer(RendererConfig(samples=64))(
        scene, camera(0, 0, distance=0.5, height=25, width=25), training=False
    )
    # The central ray leaves the cube after 1.5 units, the way it looks.
    assert inside.opacity[0, 0, 12, 12].item() == pytest.approx(1 - math.exp(-5 * 1.5), abs=1e-4)
    for render in (wide, inside):
        assert render.rgb.isfinite().all() and render.depth.isfinite().all()


def test_pruned_equals_unpruned_where_cells_are_empty() -> None:
    """Skipping empty cells changes the image and the gradients by rounding only, and skips most samples."""
    scene, cameras = object_in_a_corner(), camera()
    results = []
    for resolution in (0, 16):
        renderer = VolumeRenderer(RendererConfig(samples=48, occupancy_resolution=resolution))
        renderer.update_occupancy(scene, 0, seeded())
        render = renderer(scene, cameras, seeded(1), normals=True)
        scene.zero_grad()
        (render.rgb.square().sum() + render.depth.mean()).backward()
        assert render.samples is not None and scene.grid.grad is not None and render.normal is not None
        results.append((render.rgb, render.depth, render.normal, scene.grid.grad.clone(), len(render.samples.ray)))
    for dense, pruned in zip(results[0][:-1], results[1][:-1], strict=True):
        torch.testing.assert_close(pruned, dense, atol=1e-5, rtol=1e-4)
    assert results[1][-1] < 0.25 * results[0][-1]


def test_pruning_costs_less_opacity_than_its_threshold() -> None:
    """The threshold is a promise: haze too thin to count is worth at most that much opacity on any ray."""
    haze = Solid(density=0.028, box=(1.0, 1.0, 1.0))  # 0.028 * the cube's diagonal is just below 0.1
    diagonal = 45.0, math.degrees(math.atan(1 / math.sqrt(2)))
    cameras = camera(*diagonal, height=25, width=25)
    whole = VolumeRenderer(RendererConfig(occupancy_resolution=0))(haze, cameras, training=False).opacity.max().item()
    assert 0.09 < whole < 0.1
    for threshold, kept in ((0.1, False), (0.09, True)):
        renderer = VolumeRenderer(RendererConfig(occupancy_threshold=threshold))
        renderer.update_occupancy(haze, 0, seeded())
        assert renderer.occupancy is not None
        assert (renderer.occupancy.occupied.float().mean().item() == 1.0) is kept


def test_density_that_appears_in_an_empty_cell_is_found_at_the_next_refresh() -> None:
    """An object that grows where there was nothing must be rendered again; one that vanishes is forgotten."""
    scene, cameras = object_in_a_corner(), camera()
    renderer = VolumeRenderer(RendererConfig(samples=48))
    generator = seeded()
    renderer.update_occupancy(scene, 0, generator)
    with torch.no_grad():
        scene.grid[:, 0] = -40.0
        scene.grid[:, 0, 4:9, 14:20, 4:9] = 12.0
    renderer.update_occupancy(scene, 1, generator)  # between refreshes nothing happens
    stale = renderer(scene, cameras, training=False)
    renderer.update_occupancy(scene, 16, generator)
    fresh = renderer(scene, cameras, training=False)
    truth = VolumeRenderer(RendererConfig(samples=48, occupancy_resolution=0))(scene, cameras, training=False)
    assert (stale.rgb - truth.rgb).abs().max() > 0.1
    torch.testing.assert_close(fresh.rgb, truth.rgb, atol=1e-5, rtol=0)
    assert renderer.occupancy is not None
    before = (renderer.occupancy.maximum > 1).sum()
    for step in range(32, 32 + 40 * 16, 16):
        renderer.update_occupancy(scene, step, generator)
    assert (renderer.occupancy.maximum > 1).sum() < 0.8 * before


def test_every_empty_cell_is_opened_at_random_now_and_then() -> None:
    """Without a visit no gradient reaches an empty cell, and what could grow there never does."""
    renderer = VolumeRenderer(RendererConfig(occupancy_resolution=8))
    empty, generator = Solid(density=0.0, radius=0.5), seeded()
    assert renderer.occupancy is not None
    visited = torch.zeros(8, 8, 8)
    for step in range(0, 16 * 800, 16):
        renderer.update_occupancy(empty, step, generator)
        visited += renderer.occupancy.occupied
    assert visited.min() > 0
    assert visited.mean().item() == pytest.approx(800 / 64, rel=0.05)


def test_backgrounds() -> None:
    """White, fixed, random (one colour an image, training only) and learned, where there is nothing."""
    empty = Solid(density=0.0, radius=0.5)
    cameras = Cameras.look_at_origin(torch.tensor([0.0, 90.0]), torch.zeros(2), height=4, width=4)

    def rgb(background: Any, training: bool = True) -> Tensor:
        return VolumeRenderer(RendererConfig(background=background))(empty, cameras, seeded(), training=training).rgb

    assert (rgb("white") == 1).all()
    torch.testing.assert_close(rgb((0.1, 0.2, 0.3))[1, :, 2, 2], torch.tensor([0.1, 0.2, 0.3]))
    drawn = rgb("random")
    assert torch.equal(drawn, drawn[:, :, :1, :1].expand_as(drawn))
    assert not torch.equal(drawn[0], drawn[1]) and torch.equal(drawn, rgb("random"))
    assert (rgb("random", training=False) == 1).all()
    assert (rgb("learned") == 0.5).all()
    with pytest.raises(ValueError, match="background"):
        VolumeRenderer(RendererConfig(background="withe"))  # type: ignore[arg-type]


def test_learned_background_gets_the_gradient_of_what_shows_it() -> None:
    """Pixels without a sample are background, and each pixel passes on what its opacity leaves: (1 - A)."""
    renderer = VolumeRenderer(RendererConfig(background="learned", samples=32))
    render = renderer(Solid(density=2.0, radius=0.5), camera(fov=120.0), seeded())
    render.rgb[:, 0].sum().backward()
    assert renderer.background_logit.grad is not None
    expected = 0.25 * (1 - render.opacity).sum()  # sigmoid'(0) is 1/4
    torch.testing.assert_close(renderer.background_logit.grad, torch.tensor([expected.item(), 0, 0]))
    assert renderer.parameter_groups(0.1)[0]["params"][0] is renderer.background_logit
    assert VolumeRenderer(RendererConfig()).parameter_groups(0.1) == [] and not list(
        VolumeRenderer(RendererConfig()).parameters()
    )


def test_a_view_without_any_sample_still_trains() -> None:
    """All cells empty: the image is background and backward runs (with zero gradients) instead of failing."""
    scene = voxels()
    renderer = VolumeRenderer(RendererConfig(samples=16))
    assert renderer.occupancy is not None
    renderer.occupancy.occupied.zero_()
    render = renderer(scene, camera(fov=120.0), seeded(), normals=True)
    (render.rgb.sum() + render.depth.sum()).backward()
    assert (render.rgb == 1).all() and scene.grid.grad is not None and (scene.grid.grad == 0).all()


def test_jitter_is_unbiased_noise_around_the_same_image() -> None:
    """Training draws differ, stay in their intervals, and average to a fine render."""
    scene, cameras, renderer = voxels(), camera(height=12, width=12), VolumeRenderer(RendererConfig(samples=16))
    generator = seeded()
    draws = torch.stack([renderer(scene, cameras, generator).opacity for _ in range(200)]).detach()
    assert draws.std(0).max() > 1e-4
    fine = VolumeRenderer(RendererConfig(samples=1000))(scene, cameras, training=False).opacity
    assert (draws.mean(0) - fine).abs().max() < 0.02


def test_training_without_a_generator_is_refused() -> None:
    """Falling back on global randomness would break resuming bit for bit."""
    with pytest.raises(ValueError, match="generator"):
        VolumeRenderer(RendererConfig())(voxels(), camera())


@pytest.mark.parametrize("kind", ["voxels", "hash"])
def test_saved_state_gives_the_next_steps_bit_for_bit(kind: str) -> None:
    """Scene, renderer and generator state are all that a step depends on, occupancy included."""

    def make(seed: int) -> tuple[RadianceField, VolumeRenderer, torch.Generator]:
        small = {"levels": 3, "log2_table": 8, "base_resolution": 4, "finest_resolution": 16, "hidden": 8}
        generator = seeded(seed)
        scene: RadianceField = (
            VoxelGrid(VoxelGridConfig(resolution=10), generator)
            if kind == "voxels"
            else HashGrid(HashGridConfig(**small), generator)
        )
        return (
            scene,
            VolumeRenderer(RendererConfig(samples=24, background="learned", occupancy_resolution=8)),
            generator,
        )

    def steps(scene: RadianceField, renderer: VolumeRenderer, generator: torch.Generator, at: range) -> Tensor:
        groups = scene.parameter_groups(0.1) + renderer.parameter_groups(0.1)
        optimizer = torch.optim.SGD([{k: v for k, v in g.items() if k != "eps"} for g in groups])
        for step in at:
            renderer.update_occupancy(scene, step, generator)
            render = renderer(scene, camera(40.0 * step, height=8, width=8), generator)
            optimizer.zero_grad()
            (render.rgb.square().mean() + 0.01 * scene.total_variation()).backward()
            optimizer.step()
            scene.after_step(step, 0.0, None, generator)
        return render.rgb.detach()

    scene, renderer, generator = make(0)
    steps(scene, renderer, generator, range(5))
    other_scene, other_renderer, other_generator = make(1)
    other_scene.load_state_dict({k: v.clone() for k, v in scene.state_dict().items()})
    other_renderer.load_state_dict({k: v.clone() for k, v in renderer.state_dict().items()})
    other_generator.set_state(generator.get_state())
    # Over the refresh at step 16.
    expected = steps(scene, renderer, generator, range(5, 18))
    assert torch.equal(steps(other_scene, other_renderer, other_generator, range(5, 18)), expected)
    for key, value in scene.state_dict().items():
        assert torch.equal(value, other_scene.state_dict()[key])
    assert all(value.is_contiguous() for value in {**scene.state_dict(), **renderer.state_dict()}.values())


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("kind", ["voxels", "hash"])
def test_cuda_equals_cpu(kind: str) -> None:
    """Image, depth, normals and gradients on CUDA are the CPU's up to rounding, with a CPU generator."""
    results = []
    for device in ("cpu", "cuda"):
        generator = seeded()
        scene: RadianceField = (
            VoxelGrid(VoxelGridConfig(resolution=24), generator)
            if kind == "voxels"
            else HashGrid(HashGridConfig(levels=4, log2_table=10, finest_resolution=64), generator)
        )
        scene, renderer = scene.to(device), VolumeRenderer(RendererConfig(background="random")).to(device)
        renderer.update_occupancy(scene, 0, generator)
        render = renderer(scene, camera().to(device), generator, normals=True)
        (render.rgb.square().mean() + render.depth.mean()).backward()
        assert render.normal is not None
        gradients = [p.grad for p in scene.parameters() if p.grad is not None]
        results.append([x.cpu() for x in (render.rgb, render.opacity, render.depth, render.normal, *gradients)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(theirs, ours, atol=2e-4, rtol=2e-3)
