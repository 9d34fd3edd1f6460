"""Splat files, as another program reads them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from plyfile import PlyData

from carv3d.cameras import Cameras
from carv3d.generation import results
from carv3d.generation.config import MeshConfig
from carv3d.scenes import Gaussians
from carv3d.scenes.config import GaussiansConfig
from carv3d.scenes.splat_file import to_ply
from tests.gaussians import cloud, look, read_splats, seeded


@pytest.mark.parametrize("degree", [0, 3])
def test_splat_files_open_elsewhere_and_draw_the_same(tmp_path: Path, degree: int) -> None:
    """Columns in the order that viewers expect; read by another program each field is the same, and the picture."""
    scene = cloud(degree=degree).float()
    path = tmp_path / "splat.ply"
    path.write_bytes(to_ply(scene))
    names = PlyData.read(path)["vertex"].data.dtype.names
    rest = [f"f_rest_{i}" for i in range(45 if degree else 0)]
    dc, scales, rotation = ([f"{name}_{i}" for i in range(n)] for name, n in (("f_dc", 3), ("scale", 3), ("rot", 4)))
    assert list(names) == ["x", "y", "z", "nx", "ny", "nz", *dc, *rest, "opacity", *scales, *rotation]
    again = read_splats(path, degree)
    for name, parameter in scene.named_parameters():
        expected = torch.nn.functional.normalize(parameter, dim=-1) if name == "rotations" else parameter
        torch.testing.assert_close(again.get_parameter(name), expected, rtol=1e-6, atol=1e-6, msg=name)
    views = Cameras.look_at_origin(torch.tensor([0.0, 70.0]), torch.tensor([10.0, 50.0]), height=24, width=24)
    torch.testing.assert_close(look(again, views).rgb, look(scene, views).rgb)


def test_results_need_no_mesh(tmp_path: Path) -> None:
    """`--format splat` alone writes no mesh, and takes no time for one."""
    mesh, files = results.export(Gaussians(GaussiansConfig(count=5), seeded()), MeshConfig(formats=["splat"]), tmp_path)
    assert mesh is None and [file.name for file in files] == ["splat.ply"]
