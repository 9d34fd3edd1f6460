"""Cameras: axes, rays, samplers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import qmc

from carv3d.cameras import Cameras, CameraSampler, SequenceSampler, orbit
from carv3d.cameras.config import CameraConfig
from carv3d.teachers.camera_conditioning import camera_vector

ANGLES = st.floats(-180, 180), st.floats(-85, 85)


@given(*ANGLES, st.floats(1, 5), st.floats(15, 90))
def test_pose_is_a_right_handed_rotation_that_looks_at_the_origin(a: float, e: float, d: float, fov: float) -> None:
    camera = Cameras.look_at_origin(torch.tensor([a]), torch.tensor([e]), d, fov)
    rotation, position = camera.c2w[0, :3, :3], camera.c2w[0, :3, 3]
    torch.testing.assert_close(rotation.T @ rotation, torch.eye(3), atol=1e-5, rtol=0)
    assert float(torch.linalg.det(rotation)) == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(-rotation[:, 2] * d, -position, atol=1e-4, rtol=0)
    assert rotation[2, 1] > 0  # the image's up has a part along +z


@given(*ANGLES, st.floats(15, 90))
def test_rays_pass_through_their_pixels(a: float, e: float, fov: float) -> None:
    """A point along a ray projects to the centre of its pixel through c2w and intrinsics."""
    camera = Cameras.look_at_origin(torch.tensor([a]), torch.tensor([e]), 3.0, fov, height=6, width=10)
    origins, directions = camera.rays()
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(1, 6, 10))
    local = (origins + 2 * directions - camera.c2w[0, :3, 3]) @ camera.c2w[0, :3, :3]
    x, y, z = local[0].unbind(-1)
    fx, cx, cy = camera.intrinsics[0, 0, 0], camera.intrinsics[0, 0, 2], camera.intrinsics[0, 1, 2]
    torch.testing.assert_close(fx * x / -z + cx, (torch.arange(10) + 0.5).expand(6, 10), atol=1e-3, rtol=0)
    torch.testing.assert_close(-fx * y / -z + cy, (torch.arange(6) + 0.5)[:, None].expand(6, 10), atol=1e-3, rtol=0)


def test_named_directions() -> None:
    """Azimuth 0 stands on +x, azimuth 90 on +y, elevation is up; +y is on the right of the front view."""
    cameras = Cameras.look_at_origin(torch.tensor([0.0, 90.0, 0.0]), torch.tensor([0.0, 0.0, 80.0]), 3.0)
    torch.testing.assert_close(cameras.c2w[0, :3, 3], torch.tensor([3.0, 0, 0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(cameras.c2w[1, :3, 3], torch.tensor([0, 3.0, 0]), atol=1e-5, rtol=0)
    assert cameras.c2w[2, 2, 3] > 2.9
    torch.testing.assert_close(cameras.c2w[0, :3, 0], torch.tensor([0, 1.0, 0]), atol=1e-5, rtol=0)


def test_sampler_is_uniform_in_its_ranges_and_deterministic() -> None:
    """Means within 4 standard errors; the same generator state gives the same cameras."""
    sampler = CameraSampler(CameraConfig(azimuth=[-180, 180], elevation=[-10, 45], distance=[2, 3], fov=[15, 80]))
    cameras = sampler.sample(20_000, torch.Generator().manual_seed(0))
    for values, (low, high) in ((cameras.azimuth, (-180, 180)), (cameras.elevation, (-10, 45))):
        assert low <= values.min() and values.max() <= high
        standard_error = (high - low) / 12**0.5 / 20_000**0.5
        assert abs(float(values.mean()) - (low + high) / 2) < 4 * standard_error
    again = sampler.sample(20_000, torch.Generator().manual_seed(0))
    assert torch.equal(cameras.c2w, again.c2w) and torch.equal(cameras.intrinsics, again.intrinsics)


def test_every_camera_of_the_sequence_is_uniform_over_offsets() -> None:
    """Moments of both angles, and of their product, as if drawn: |z| < 4 at three places of the sequence."""
    sampler, rng = SequenceSampler(CameraConfig()), torch.Generator().manual_seed(1)
    offsets = torch.rand(1500, 2, generator=rng, dtype=torch.float64)
    for first in (0, 7, 1000):
        cameras = [sampler.sequence(first, 1, offset, rng) for offset in offsets]
        x = torch.cat([c.azimuth for c in cameras]).double() / 360 + 0.5
        y = (torch.cat([c.elevation for c in cameras]).double() + 10) / 90
        for values, mean in ((x, 1 / 2), (y, 1 / 2), (x**2, 1 / 3), (y**2, 1 / 3), (x * y, 1 / 4)):
            assert abs(float((values.mean() - mean) / (values.std() / len(values) ** 0.5))) < 4


def test_sequence_goes_on_where_it_stopped_and_spreads() -> None:
    """In one piece or in two; and its discrepancy over both angles is far below that of independent ones."""
    sampler, offset = SequenceSampler(CameraConfig()), torch.tensor([0.3, 0.9], dtype=torch.float64)
    whole, rest = (sampler.sequence(first, 64 - first, offset, torch.Generator()) for first in (0, 12))
    assert torch.equal(whole.azimuth[12:], rest.azimuth) and torch.equal(whole.c2w[12:], rest.c2w)

    def discrepancy(cameras: Cameras) -> float:
        square = torch.stack([cameras.azimuth / 360 + 0.5, (cameras.elevation + 10) / 90], 1)
        return float(qmc.discrepancy(square.double().clamp(0, 1).numpy()))

    drawn = [discrepancy(sampler.sample(64, torch.Generator().manual_seed(seed))) for seed in range(20)]
    assert discrepancy(whole) < 0.5 * min(drawn)


def test_orbit_goes_around_once() -> None:
    azimuths = orbit(4, 10.0).azimuth.tolist()
    assert azimuths == [0.0, 90.0, -180.0, -90.0]


def test_camera_vector_is_smooth_across_the_turn() -> None:
    """180 and -180 degrees are the same camera, and none is the zero vector that means unknown."""
    one, two = camera_vector(torch.tensor([180.0, -180.0]), torch.tensor([20.0, 20.0]))
    torch.testing.assert_close(one, two, atol=1e-6, rtol=0)
    assert float(one.norm()) == pytest.approx(2**0.5)
