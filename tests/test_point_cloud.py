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
