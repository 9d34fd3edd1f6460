"""Meshes: the surface of a field, its colours and its files."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh

from carv3d.cameras import Cameras, orbit
from carv3d.errors import UserError
from carv3d.mesh import Mesh, bake_texture, extract, load, save
from carv3d.mesh.isosurface import _closed, _cut, _simplify, shade
from carv3d.mesh.raster import sample_texture
from carv3d.renderers.mesh import render_mesh

Distance = Callable[[torch.Tensor], torch.Tensor]


class Solid:
    """A field with the given signed distance (negative inside): hard, or soft with haze around it."""

    bound = 1.0

    def __init__(self, distance: Distance, strength: float = 200.0, softness: float = 0.0, haze: float = 0.0) -> None:
        self.distance, self.strength, self.softness, self.haze = distance, strength, softness, haze

    def density(self, points: torch.Tensor) -> torch.Tensor:
        distance = self.distance(points)
        inside = torch.sigmoid(-distance / self.softness) if self.softness else (distance < 0).float()
        return self.strength * inside + self.haze

    def query(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.density(points), paint(points)


def paint(points: torch.Tensor) -> torch.Tensor:
    return 0.5 + 0.4 * torch.sin(2.0 * points + torch.tensor([0.0, 1.0, 2.0]))


def ball(radius: float, centre: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Distance:
    return lambda p: (p - torch.tensor(centre, dtype=p.dtype)).norm(dim=-1) - radius


def box(*half: float) -> Distance:
    return lambda p: (p.abs() - torch.tensor(half)).amax(-1)


def torus(p: torch.Tensor) -> torch.Tensor:
    return torch.hypot(torch.hypot(p[:, 0], p[:, 1]) - 0.55, p[:, 2]) - 0.22


def either(*distances: Distance) -> Distance:
    return lambda p: torch.stack([distance(p) for distance in distances]).amin(0)


def solid(mesh: Mesh) -> trimesh.Trimesh:
    """As trimesh sees it, with the vertices joined by position."""
    return trimesh.Trimesh(mesh.vertices, mesh.faces)


def radius(surface: trimesh.Trimesh) -> float:
    """Of the ball with this volume."""
    return float((surface.volume * 3 / 4 / math.pi) ** (1 / 3))


def opacity(field: Solid, cameras: Cameras, steps: int = 192) -> torch.Tensor:
    """The field's own opacity, (R, 1, H, W), by a plain march through the ball that holds the cube."""
    origins, directions = (rays.float() for rays in cameras.rays())
    reach = math.sqrt(3) * field.bound
    step = 2 * reach / steps
    along = cameras.distance.float()[:, None, None, None] - reach + step * (torch.arange(steps) + 0.5)
    points = origins[..., None, :] + along[..., None] * directions[..., None, :]
    density = field.density(points.reshape(-1, 3)).reshape(points.shape[:-1])
    density = density * (points.abs() <= field.bound).all(-1)
    return 1 - torch.exp(-(density * step).sum(-1))[:, None]


def iou(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(((a > 0.5) & (b > 0.5)).sum() / ((a > 0.5) | (b > 0.5)).sum())


HARD_BALL = Solid(ball(0.6))
SOFT = dict(strength=50.0, softness=0.03, haze=0.05)


class TestSurface:
    def test_hard_ball_is_closed_outward_and_of_the_right_volume(self) -> None:
        mesh = extract(HARD_BALL, resolution=80)
        surface = solid(mesh)
        assert surface.is_watertight and surface.is_winding_consistent
        assert radius(surface) == pytest.approx(0.6, abs=2 / 79)  # a cell
        assert surface.euler_number == 2
        outwards = mesh.vertices / np.linalg.norm(mesh.vertices, axis=1, keepdims=True)
        assert (mesh.normals * outwards).sum(1).min() > 0.5

    def test_soft_ball_ends_where_the_light_is_absorbed(self) -> None:
        """Found here by integrating the density inwards along one radius."""
        field = Solid(ball(0.6), **SOFT)
        inwards = torch.linspace(1, 0, 4001)
        thickness = field.density(inwards[:, None] * torch.tensor([1.0, 0, 0])).cumsum(0) / 4000
        for threshold in (0.1, 0.5):
            true = inwards[thickness < -math.log1p(-threshold)].min().item()
            found = radius(solid(extract(field, resolution=80, threshold=threshold)))
            assert found == pytest.approx(true, abs=2 / 79)  # a cell

    @pytest.mark.parametrize("softness", [0.0, 0.03])
    def test_torus_keeps_its_hole(self, softness: float) -> None:
        surface = solid(extract(Solid(torus, 60.0, softness), resolution=64))
        assert surface.is_watertight and surface.volume > 0 and surface.euler_number == 0

    @pytest.mark.parametrize("strength, softness, haze", [(300, 0, 0), (100, 0.02, 0.05)])
    def test_outline_is_that_of_the_rendered_field(self, strength: float, softness: float, haze: float) -> None:
        """Two unlike parts, seen from other sides than those that light falls from."""
        field = Solid(either(ball(0.4, (0.0, 0.0, 0.3)), box(0.12, 0.5, 0.6)), strength, softness, haze)
        cameras = orbit(4, [-10.0, 10.0, 35.0, 60.0], start=17, height=96, width=96)
        drawn = render_mesh(extract(field), cameras).opacity
        assert iou(drawn, opacity(field, cameras)) > 0.94

    def test_surface_does_not_depend_on_the_largest_density(self) -> None:
        """A core ten thousand times as dense changes nothing that a camera sees."""

        class Cored(Solid):
            def density(self, points: torch.Tensor) -> torch.Tensor:
                return super().density(points).where(points.norm(dim=-1) > 0.2, 5e5)

        plain, cored = (solid(extract(kind(ball(0.6), **SOFT), resolution=48)) for kind in (Solid, Cored))
        assert cored.volume == pytest.approx(plain.volume, rel=0.01)

    def test_floaters_go_and_genuine_parts_stay(self) -> None:
        """The second ball has a tenth of the first one's volume, the specks a thousandth."""
        specks = [ball(0.05, (x, 0.7, -0.7)) for x in (-0.7, 0.0, 0.7)]
        field = Solid(either(ball(0.45, (-0.4, 0.0, 0.0)), ball(0.21, (0.6, 0.0, 0.0)), *specks))
        mesh = extract(field, resolution=64)
        assert mesh.info["parts_removed"] == 3
        assert sorted(part.centroid[0].round(1) for part in solid(mesh).split()) == [-0.4, 0.6]
        assert solid(extract(field, resolution=64, smallest_part=0.0)).body_count == 5
        assert solid(extract(field, resolution=64, smallest_part=0.5)).body_count == 1

    def test_hidden_hollow_is_filled(self) -> None:
        hollow = extract(Solid(lambda p: (p.norm(dim=-1) - 0.5).abs() - 0.1), resolution=64)
        assert solid(hollow).body_count == 1
        assert radius(solid(hollow)) == pytest.approx(0.6, abs=2 / 63)

    def test_pits_in_the_density_are_no_pits_in_the_surface(self) -> None:
        """Behind a skin that absorbs most of the light the density may do what it likes."""

        class Rough(Solid):
            def density(self, points: torch.Tensor) -> torch.Tensor:
                rough = (points * 40).sin().prod(-1) > 0
                return super().density(points) * torch.where(rough & (points.norm(dim=-1) < 0.56), 0.01, 1.0)

        rough, plain = (extract(kind(ball(0.6), 60.0), resolution=80, faces=None) for kind in (Rough, Solid))
        assert len(rough.faces) < 1.02 * len(plain.faces)
        assert solid(rough).euler_number == 2

    def test_what_reaches_the_bounds_is_closed_there(self) -> None:
        mesh = extract(Solid(box(2.0, 0.3, 2.0), 200.0), resolution=48)
        assert solid(mesh).is_watertight
        assert np.abs(mesh.vertices).max() < 1.001
        assert np.ptp(mesh.vertices, axis=0) == pytest.approx([2.0, 0.6, 2.0], abs=0.1)

    def test_filled_cube_has_a_surface(self) -> None:
        assert solid(extract(Solid(box(2, 2, 2), 200.0), resolution=64)).volume == pytest.approx(8, rel=0.05)

    def test_simplified_to_the_count_asked_for_and_still_closed(self) -> None:
        full, few = (extract(Solid(torus, **SOFT), resolution=64, faces=faces) for faces in (None, 800))
        assert len(full.faces) > 5000 and len(few.faces) <= 800
        assert solid(few).is_watertight and solid(few).euler_number == 0
        assert solid(few).volume == pytest.approx(solid(full).volume, rel=0.02)

    def test_touching_sheets_are_cut_apart(self) -> None:
        """At this level this noise has an edge of four triangles; a level within 1 % of it has none."""
        noise = np.random.default_rng(2).random((10, 10, 10)).astype(np.float32)
        assert not _cut(noise, 0.6, 1.0).is_watertight
        surface, level, _ = _closed(noise, 0.6, 1.0, 0.01)
        assert surface.is_watertight and 0.6 != level == pytest.approx(0.6, rel=0.011)

    def test_threshold_can_be_given(self) -> None:
        field = Solid(ball(0.6), 50.0, 0.05)
        tight, loose = (solid(extract(field, resolution=48, threshold=h)).volume for h in (0.95, 0.1))
        assert tight < 4 / 3 * math.pi * 0.6**3 < loose

    @pytest.mark.parametrize(
        "field, threshold, words",
        [
            (Solid(ball(0.5), 0.0), 0.15, ["empty", "train"]),
            (Solid(ball(0.5), 0.1), 0.15, ["0.15", "0 to 0.1", "threshold=0.018"]),
            (Solid(ball(0.5), 80.0), 1.0, ["1", "0 to 80", "threshold=0.5"]),
            (Solid(ball(0.5), 80.0), -1.0, ["-1", "threshold=0.5"]),
            (Solid(ball(0.5), math.nan), 0.15, ["not finite"]),
        ],
    )
    def test_no_surface_says_what_was_found_and_what_to_try(
        self, field: Solid, threshold: float, words: list[str]
    ) -> None:
        with pytest.raises(UserError) as error:
            extract(field, resolution=16, threshold=threshold)
        assert all(word in str(error.value) for word in words), error.value
        assert "\n" not in str(error.value)

    def test_bound_sets_the_scale(self) -> None:
        field = Solid(ball(1.2), 50.0, 0.05)
        field.bound = 2.0
        surface = solid(extract(field, resolution=48))
        assert surface.bounds == pytest.approx(np.array([[-1.0] * 3, [1.0] * 3]) * 1.35, abs=0.15)

    def test_shade_of_a_slab(self) -> None:
        """Straight through half the slab is the shortest way out; no direction of the lattice is quite straight."""
        axis = np.linspace(-1, 1, 65, dtype=np.float32)
        grid = np.where(np.abs(axis) < 0.26, 3.0, 0.0).astype(np.float32)[None, None].repeat(65, 0).repeat(65, 1)
        middle = shade(grid, 1.0, views=100)[32, 32, 32]
        assert middle == pytest.approx(1 - math.exp(-3.0 * 0.26), rel=0.05)

    def test_a_surface_that_simplifying_tears_open_is_kept_whole(self, monkeypatch: pytest.MonkeyPatch) -> None:
        full = trimesh.creation.icosphere(subdivisions=3)
        torn = trimesh.Trimesh(full.vertices, full.faces[:-1])
        monkeypatch.setattr(trimesh.Trimesh, "simplify_quadric_decimation", lambda self, face_count: torn)
        kept = _simplify(full, 100)
        assert kept.is_watertight and len(kept.faces) == len(full.faces)

    def test_touching_sheets_of_a_simplified_surface_are_taken_apart(self) -> None:
        """Collapsing edges of two spheres this close makes them share one; the result is closed all the same."""
        rough = np.random.default_rng(0).random((24, 24, 24)).astype(np.float32)
        full, _, _ = _closed(rough, 0.55, 1.0, 0.01)
        assert not full.simplify_quadric_decimation(face_count=4000).is_watertight
        simple = _simplify(full, 4000)
        assert len(simple.faces) <= 4000 and simple.is_watertight and simple.is_winding_consistent


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    """A closed shape, tall in z and shifted to its front, +x."""
    return extract(Solid(either(box(0.2, 0.3, 0.8), ball(0.3, (0.5, 0.0, 0.0))), 100.0, 0.01), resolution=48)


@pytest.fixture(scope="module")
def baked(mesh: Mesh) -> Mesh:
    field = Solid(either(box(0.2, 0.3, 0.8), ball(0.3, (0.5, 0.0, 0.0))), 100.0, 0.01)
    return bake_texture(replace(mesh, rgb=np.zeros_like(mesh.rgb)), field, size=256)


class TestColour:
    def test_vertex_colours_are_the_field_s(self, mesh: Mesh) -> None:
        error = np.abs(mesh.rgb - paint(torch.from_numpy(mesh.vertices)).numpy())
        assert error.mean() < 0.02 and error.max() < 0.1

    def test_colour_of_a_soft_field_is_that_of_the_layer_one_sees(self) -> None:
        """Red skin on a blue core: a camera sees some blue through the red, the surface itself is red."""

        class Layered(Solid):
            def query(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                blue = (points.norm(dim=-1) < 0.6).float()
                return self.density(points), torch.stack([1 - blue, 0 * blue, blue], -1)

        field = Layered(ball(0.6), 50.0, 0.03)
        mesh = extract(field, resolution=48, faces=None)
        along = torch.linspace(1.0, -1.0, 2001)
        density, rgb = field.query(torch.stack([along, 0 * along, 0 * along], -1))
        optical = density * (along[0] - along[1])
        weights = torch.exp(optical - optical.cumsum(0)) * -torch.expm1(-optical)
        seen = (weights[:, None] * rgb).sum(0) / weights.sum()
        assert 0.1 < seen[0] < 0.9
        assert mesh.rgb.mean(0) == pytest.approx(seen.numpy(), abs=0.1)

    def test_texture_round_trip(self, baked: Mesh) -> None:
        """A field painted by position: the texture at random points' uv is the paint at their positions."""
        assert baked.uv is not None and baked.texture is not None and baked.texture.shape == (256, 256, 3)
        generator = np.random.default_rng(0)
        faces = baked.faces[generator.choice(len(baked.faces), 4000)]
        weights = generator.dirichlet([1, 1, 1], 4000).astype(np.float32)[..., None]
        points = torch.from_numpy((weights * baked.vertices[faces]).sum(1))
        uv = torch.from_numpy((weights * baked.uv[faces]).sum(1))
        error = (sample_texture(torch.from_numpy(baked.texture / np.float32(255)), uv) - paint(points)).abs()
        assert error.mean() < 0.02 and error.max() < 0.08

    def test_baking_keeps_the_shape(self, mesh: Mesh, baked: Mesh) -> None:
        assert solid(baked).is_watertight
        assert solid(baked).volume == pytest.approx(solid(mesh).volume, rel=1e-5)

    def test_gutters_hold_no_emptiness(self, baked: Mesh) -> None:
        """The paint is never darker than 0.1, so a darker texel was never written."""
        assert baked.texture is not None and baked.texture.min() >= 0.08 * 255


def read(path: Path) -> Any:
    """A file as trimesh alone reads it."""
    [geometry] = trimesh.load_scene(path, process=False, maintain_order=True).geometry.values()
    return geometry


class TestFiles:
    def test_glb_with_vertex_colours(self, mesh: Mesh, tmp_path: Path) -> None:
        [path] = save(mesh, tmp_path, ["glb"])
        again = load(path)
        assert again.rgb == pytest.approx(mesh.rgb, abs=1e-5)
        assert again.vertices == pytest.approx(mesh.vertices, abs=1e-6)
        assert (again.faces == mesh.faces).all()

    def test_glb_vertex_colours_are_linear_floats_on_a_matt_material(self, mesh: Mesh, tmp_path: Path) -> None:
        grey = replace(mesh, rgb=np.full_like(mesh.rgb, 0.5))
        [path] = save(grey, tmp_path, ["glb"])
        data = path.read_bytes()
        tree = json.loads(data[20 : 20 + int.from_bytes(data[12:16], "little")])
        [primitive] = tree["meshes"][0]["primitives"]
        accessor = tree["accessors"][primitive["attributes"]["COLOR_0"]]
        assert (accessor["componentType"], accessor["type"]) == (5126, "VEC3")
        surface = tree["materials"][primitive["material"]]["pbrMetallicRoughness"]
        assert (surface["metallicFactor"], surface["roughnessFactor"]) == (0.0, 1.0)
        colours = read(path).visual.vertex_attributes["color"]
        assert colours == pytest.approx(0.21404, abs=1e-4)  # sRGB 0.5 in linear light

    @pytest.mark.parametrize("kind", ["obj", "ply"])
    def test_vertex_colours_are_exact(self, mesh: Mesh, tmp_path: Path, kind: str) -> None:
        path = save(mesh, tmp_path, [kind])[-1]
        colours = read(path).visual.vertex_colors[:, :3]
        assert (colours == np.rint(255 * mesh.rgb)).all()

    @pytest.mark.parametrize("kind", ["glb", "obj"])
    def test_textured_files_reload_with_their_texture(self, baked: Mesh, tmp_path: Path, kind: str) -> None:
        again = load(save(baked, tmp_path, [kind])[-1])
        assert again.texture is not None and (again.texture == baked.texture).all()
        assert again.uv == pytest.approx(baked.uv, abs=1e-6)
        assert np.abs(again.rgb - paint(torch.from_numpy(baked.vertices)).numpy()).mean() < 0.03

    @pytest.mark.parametrize(
        "kind, tall, front", [("glb", 1, 2), ("obj", 1, 2), ("ply", 2, 0)], ids=["glb", "obj", "ply"]
    )
    def test_axes(self, mesh: Mesh, tmp_path: Path, kind: str, tall: int, front: int) -> None:
        """Tall in the world's z and reaching to its +x: that is y and z in GLB and OBJ, unchanged in PLY."""
        path = save(mesh, tmp_path, [kind])[-1]
        surface = read(path)
        assert np.argmax(surface.extents) == tall
        assert surface.bounds[1][front] > 0.7 and surface.bounds[0][front] > -0.3
        assert surface.volume == pytest.approx(solid(mesh).volume, rel=1e-3)  # a rotation, no mirror
        assert load(path).vertices == pytest.approx(mesh.vertices, abs=1e-5)

    def test_normals_travel_with_the_vertices(self, baked: Mesh, tmp_path: Path) -> None:
        save(baked, tmp_path, ["glb", "obj"])
        for kind in ("glb", "obj"):
            assert load(tmp_path / f"mesh.{kind}").normals == pytest.approx(baked.normals, abs=1e-4)

    def test_textured_mesh_as_ply_is_closed_and_coloured(self, mesh: Mesh, baked: Mesh, tmp_path: Path) -> None:
        [path] = save(replace(baked, rgb=np.full_like(baked.rgb, 0.25)), tmp_path, ["ply"])
        surface = read(path)
        assert surface.is_watertight and len(surface.vertices) == len(mesh.vertices)
        assert (surface.visual.vertex_colors[:, :3] == 64).all()

    def test_obj_names_its_companions(self, baked: Mesh, tmp_path: Path) -> None:
        written = save(baked, tmp_path / "new" / "folder", ["obj", "glb"], name="chair")
        assert {path.name for path in written} == {"chair.obj", "chair.mtl", "chair.png", "chair.glb"}
        assert {path.name for path in written} == {path.name for path in (tmp_path / "new/folder").iterdir()}
        assert "mtllib chair.mtl" in (tmp_path / "new/folder/chair.obj").read_text()
        assert "map_Kd chair.png" in (tmp_path / "new/folder/chair.mtl").read_text()

    def test_failure_leaves_the_folder_as_it_was(
        self, baked: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        save(baked, tmp_path, ["glb"])
        before = (tmp_path / "mesh.glb").read_bytes()
        sync, calls = os.fsync, []

        def fill_the_disk(descriptor: int) -> None:
            calls.append(descriptor)
            if len(calls) == 3:
                raise OSError(errno.ENOSPC, "No space left on device")
            sync(descriptor)

        monkeypatch.setattr(os, "fsync", fill_the_disk)
        with pytest.raises(UserError, match="the disk is full"):
            save(replace(baked, vertices=2 * baked.vertices), tmp_path, ["glb", "obj", "ply"])
        assert [path.name for path in tmp_path.iterdir()] == ["mesh.glb"]
        assert (tmp_path / "mesh.glb").read_bytes() == before

    def test_mistakes_are_explained(self, mesh: Mesh, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="'stl'; use one of glb, obj, ply"):
            save(mesh, tmp_path, ["glb", "stl"])
        assert list(tmp_path.iterdir()) == []
        with pytest.raises(UserError, match=r"no mesh .*none\.glb"):
            load(tmp_path / "none.glb")
        with pytest.raises(UserError, match="ends in glb, obj, ply"):
            load(tmp_path / "none.stl")


@pytest.mark.parametrize("kind", ["glb", "obj", "ply"])
@pytest.mark.parametrize("data", [b"", bytes(range(256)) * 9, b"[" * 3000, b"null"])
def test_a_damaged_mesh_is_one_line(tmp_path: Path, kind: str, data: bytes) -> None:
    (tmp_path / f"mesh.{kind}").write_bytes(data)
    with pytest.raises(UserError, match=rf"mesh\.{kind} cannot be read as a mesh \(.*export it again"):
        load(tmp_path / f"mesh.{kind}")
