"""Pictures of meshes: which pixels are covered, by what, in which colour."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st

from carv3d.cameras import Cameras, orbit
from carv3d.mesh import Mesh
from carv3d.mesh.raster import cover
from carv3d.renderers.mesh import render_mesh


def quad(x: float, rgb: tuple[float, float, float], half: float = 0.5) -> Mesh:
    """A square across the x axis, facing +x."""
    corners = np.array([[x, -half, -half], [x, half, -half], [x, half, half], [x, -half, half]], np.float32)
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    normals = np.tile(np.array([1, 0, 0], np.float32), (4, 1))
    return Mesh(corners, faces, normals, np.tile(np.array(rgb, np.float32), (4, 1)))


def joined(a: Mesh, b: Mesh) -> Mesh:
    return Mesh(
        np.concatenate([a.vertices, b.vertices]),
        np.concatenate([a.faces, b.faces + len(a.vertices)]),
        np.concatenate([a.normals, b.normals]),
        np.concatenate([a.rgb, b.rgb]),
    )


class TestRender:
    def test_silhouette_is_where_the_rays_meet_the_ball(self) -> None:
        sphere = trimesh.creation.icosphere(subdivisions=4, radius=0.6)
        vertices = np.array(sphere.vertices, np.float32)
        mesh = Mesh(vertices, np.array(sphere.faces), vertices / 0.6, np.ones_like(vertices))
        cameras = orbit(3, [0.0, 30.0, 70.0], height=64, width=80)
        origins, directions = cameras.rays()
        missed_by = (origins - (origins * directions).sum(-1, keepdim=True) * directions).norm(dim=-1)
        drawn = render_mesh(mesh, cameras)
        assert drawn.opacity.shape == (3, 1, 64, 80) and drawn.rgb.shape == (3, 3, 64, 80)
        covered, met = drawn.opacity[:, 0] > 0, missed_by < 0.6
        assert (covered & met).sum() / (covered | met).sum() > 0.99

    def test_pixels_show_the_point_their_ray_meets(self) -> None:
        """A wall seen at a slant: its colour is its position, which only perspective-correct weights give."""
        wall = quad(0.0, (0.0, 0.0, 0.0))
        wall = replace(wall, rgb=wall.vertices + 0.5)
        cameras = Cameras.look_at_origin(torch.tensor([65.0]), torch.tensor([25.0]), 1.5, 40.0, 48, 48)
        origins, directions = cameras.rays()
        hit = origins - origins[..., :1] / directions[..., :1] * directions
        drawn = render_mesh(wall, cameras)
        on = drawn.opacity[0, 0] > 0
        assert on.sum() > 200
        assert drawn.rgb[0].movedim(0, -1)[on].numpy() == pytest.approx((hit[0][on] + 0.5).numpy(), abs=1e-3)

    def test_texture_is_shown_where_uv_puts_it(self) -> None:
        """Four coloured quarters, u to the right and v up as the camera in front sees them."""
        texture = np.zeros((64, 64, 3), np.uint8)
        texture[:32, :32], texture[:32, 32:], texture[32:, :32] = [255, 0, 0], [0, 255, 0], [0, 0, 255]
        uv = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)
        wall = replace(quad(0.0, (1.0, 1.0, 1.0)), uv=uv, texture=texture)
        rgb = render_mesh(wall, orbit(1, 0.0)).rgb[0]
        assert rgb[:, 28, 28].tolist() == [1, 0, 0] and rgb[:, 28, 36].tolist() == [0, 1, 0]
        assert rgb[:, 36, 28].tolist() == [0, 0, 1] and rgb[:, 36, 36].tolist() == [0, 0, 0]

    def test_nearer_wall_hides_the_farther_from_either_side(self) -> None:
        walls = joined(quad(0.3, (1.0, 0.0, 0.0)), quad(-0.3, (0.0, 1.0, 0.0)))
        front, back = render_mesh(walls, orbit(2, 0.0)).rgb[:, :, 32, 32]
        assert front.tolist() == pytest.approx([1, 0, 0])
        assert back.tolist() == pytest.approx([0, 1, 0])

    def test_background_and_what_is_behind_the_camera(self) -> None:
        cameras = orbit(1, 0.0)
        both = joined(quad(0.0, (1.0, 0.0, 0.0), 0.2), quad(5.0, (0.0, 1.0, 0.0), 3.0))
        drawn = render_mesh(both, cameras, background=(0.0, 0.25, 0.5))
        assert drawn.rgb[0, :, 32, 32].tolist() == pytest.approx([1, 0, 0])
        assert drawn.rgb[0, :, 0, 0].tolist() == [0, 0.25, 0.5]
        assert drawn.opacity[0, 0, 0, 0] == 0

    def test_triangles_that_pass_under_the_camera_are_left_out(self) -> None:
        floor = quad(0.0, (1.0, 0.0, 0.0), 9.0)
        floor = replace(floor, vertices=np.roll(floor.vertices, -1, 1) - np.array([0, 0, 0.5], np.float32))
        assert render_mesh(floor, orbit(1, 0.0)).opacity.sum() == 0

    def test_supersampling_softens_edges_and_keeps_the_area(self) -> None:
        wall, cameras = quad(0.0, (1.0, 0.0, 0.0), 0.333), orbit(1, 20.0, start=20)
        hard, soft = (render_mesh(wall, cameras, supersample=scale).opacity for scale in (1, 4))
        assert hard.unique().tolist() == [0, 1] and len(soft.unique()) > 4
        assert soft.sum().item() == pytest.approx(hard.sum().item(), rel=0.03)


CORNER = st.tuples(st.floats(-4, 12), st.floats(-4, 12))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(CORNER, CORNER, CORNER), min_size=1, max_size=4))
def test_cover_finds_exactly_the_pixel_centres_inside(corners: list[tuple[tuple[float, float], ...]]) -> None:
    """Against the definition: a centre is inside if it is on the same side of all three edges."""
    triangles = torch.tensor(corners, dtype=torch.float64)
    face, pixel, weights = cover(triangles, 7, 9)
    found = set(zip(face.tolist(), pixel.tolist(), strict=True))
    assert len(found) == len(face)
    centres = torch.stack([pixel % 9, pixel // 9], -1) + 0.5
    assert torch.allclose((weights[..., None] * triangles[face]).sum(1), centres.double(), atol=1e-3)
    y, x = torch.meshgrid(torch.arange(7) + 0.5, torch.arange(9) + 0.5, indexing="ij")
    for index, corner in enumerate(triangles):
        edge_x, edge_y = (corner.roll(-1, 0) - corner).unbind(1)
        to_x, to_y = x.reshape(-1, 1) - corner[:, 0], y.reshape(-1, 1) - corner[:, 1]
        sides = edge_x * to_y - edge_y * to_x
        inside = (sides > 0).all(1) | (sides < 0).all(1)
        for place in (sides.abs().amin(1) > 1e-2).nonzero()[:, 0].tolist():  # on an edge either answer is right
            assert inside[place].item() == ((index, place) in found)
