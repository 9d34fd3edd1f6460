"""Point clouds that Gaussians start from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from carv3d.errors import UserError
from carv3d.scenes import Gaussians
from carv3d.scenes.config import GaussiansConfig
from carv3d.scenes.point_cloud import read
from tests.gaussians import seeded


def ply_text(header: str, rows: str) -> str:
    return f"ply\nformat ascii 1.0\n{header}end_header\n{rows}"


XYZ = "property float x\nproperty float y\nproperty float z\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ply_text(f"element vertex 0\n{XYZ}", ""), "no points"),
        (ply_text(f"element vertex 2\n{XYZ}", "0 0 nan\n0 0 0\n"), "1 of 2 points are not finite"),
        (ply_text("element vertex 1\nproperty float x\nproperty float y\n", "0 0\n"), "x, y, z"),
        (ply_text(f"element vertex 2\n{XYZ}", "0 0 0\n0 0 4\n"), "1 of 2 points lie outside the cube"),
        ("not a ply at all\n", "x, y, z"),
        ("", "x, y, z"),
    ],
)
def test_a_bad_point_cloud_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    """What is wrong with the file and what to do, before any training."""
    path = tmp_path / "points.ply"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        Gaussians(GaussiansConfig(points=str(path)), seeded())
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_a_point_cloud_gives_places_colours_and_sizes(tmp_path: Path) -> None:
    """Positions and colours of the file; sizes from the neighbours' distance; grey without colours."""
    corners = np.array([[x, y, z] for x in (0, 0.1) for y in (0, 0.1) for z in (0, 0.1)], np.float32)
    path = tmp_path / "points.ply"
    trimesh.PointCloud(corners, colors=np.tile(np.uint8([255, 0, 51, 255]), (8, 1))).export(path)
    scene = Gaussians(GaussiansConfig(points=str(path), spread=0.5), seeded())
    torch.testing.assert_close(scene.positions.detach(), torch.from_numpy(corners))
    torch.testing.assert_close(scene.scales.detach(), torch.full((8, 3), 0.05))
    torch.testing.assert_close(scene.rgb()[0].detach(), torch.tensor([1, 0, 0.2]), atol=0.01, rtol=0)
    with pytest.raises(UserError, match="no point cloud"):
        Gaussians(GaussiansConfig(points=str(tmp_path / "missing.ply")), seeded())
    path.write_text(ply_text(f"element vertex 1\n{XYZ}", "0 0 0\n"))  # one point has no neighbour
    torch.testing.assert_close(
        Gaussians(GaussiansConfig(points=str(path)), seeded()).rgb()[0].detach(), torch.full((3,), 0.5)
    )


def written(tmp_path: Path, columns: dict[str, str], rows: list[tuple[float, ...]], *, count: int = 0) -> str:
    """A .ply with these columns and their types beside x, y, z; all points at the origin."""
    path = tmp_path / "points.ply"
    properties = "".join(f"property {kind} {name}\n" for name, kind in columns.items())
    lines = "".join(" ".join(map(str, (0, 0, 0, *row))) + "\n" for row in rows)
    path.write_text(ply_text(f"element vertex {count or len(rows)}\n{XYZ}{properties}", lines))
    return str(path)


@pytest.mark.parametrize(
    ("names", "kind", "row", "expected"),
    [
        ("red green blue", "uchar", (255, 0, 51), (1, 0, 0.2)),
        ("red green blue", "ushort", (65535, 0, 13107), (1, 0, 0.2)),
        ("red green blue", "float", (1, 0, 0.2), (1, 0, 0.2)),
        ("diffuse_red diffuse_green diffuse_blue", "uchar", (255, 0, 51), (1, 0, 0.2)),
        ("r g b", "double", (1, 0, 0.2), (1, 0, 0.2)),
        ("f_dc_0 f_dc_1 f_dc_2", "float", (1.7724539, -1.7724539, -1.0634723), (1, 0, 0.2)),
    ],
)
def test_colours_of_any_known_kind(
    tmp_path: Path, names: str, kind: str, row: tuple[float, ...], expected: tuple[float, ...]
) -> None:
    """A splat file too: its coefficients of degree 0."""
    cloud = read(written(tmp_path, dict.fromkeys(names.split(), kind), [row, row]), 1.0)
    torch.testing.assert_close(cloud.rgb, torch.tensor([expected, expected]), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("names", "kind", "row"),
    [
        ("red green blue", "float", (200, 0, 51)),
        ("red green blue", "float", (-0.1, 0, 0)),
        ("red green blue", "int", (200, 0, 51)),
        ("red green", "uchar", (200, 0)),
        ("specular_red specular_green specular_blue", "uchar", (200, 0, 51)),
        ("f_dc_0 f_dc_1", "float", (1, 1)),
    ],
)
def test_colours_that_are_not_understood_are_refused(
    tmp_path: Path, names: str, kind: str, row: tuple[float, ...]
) -> None:
    """Never guessed, and never grey in silence."""
    with pytest.raises(UserError, match="not understood"):
        read(written(tmp_path, dict.fromkeys(names.split(), kind), [row]), 1.0)


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="2 of its 4 points: it was cut"):
        read(written(tmp_path, {}, [(), ()], count=4), 1.0)


def test_our_own_splats_keep_their_colours_and_places(tmp_path: Path) -> None:
    """Exported and taken as a start again."""
    scene = Gaussians(GaussiansConfig(count=50), seeded())
    path = tmp_path / "splat.ply"
    splats = scene.splats()
    assert splats is not None
    path.write_bytes(splats)
    torch.testing.assert_close(read(path, 1.0).positions, scene.positions.detach())
    torch.testing.assert_close(read(path, 1.0).rgb, scene.rgb().detach().clamp(0, 1), atol=2e-3, rtol=0)
