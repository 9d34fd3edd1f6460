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
from carv3d.scenes.spherical_harmonics import basis, functions
from carv3d.scenes.spherical_harmonics import rotation as harmonics_rotation
from carv3d.scenes.splat_file import WORLD_TO_FILE, to_ply
from tests.gaussians import cloud, in_splat_axes, look, read_splats, seeded

# What a viewer such as SuperSplat makes of the file's axes: half a turn about z, then y is up and +z is the front.
HALF_TURN = torch.diag(torch.tensor([-1.0, -1.0, 1.0]))


@pytest.mark.parametrize("degree", [0, 1, 3])
def test_splat_files_open_elsewhere_and_draw_the_same(tmp_path: Path, degree: int) -> None:
    """62 columns, whatever the degree. Another program's reader, and a camera turned as the axes are: same picture."""
    scene = cloud(degree=degree).float()
    path = tmp_path / "splat.ply"
    path.write_bytes(to_ply(scene))
    names = PlyData.read(path)["vertex"].data.dtype.names
    rest = [f"f_rest_{i}" for i in range(45)]
    dc, scales, rotation = ([f"{name}_{i}" for i in range(n)] for name, n in (("f_dc", 3), ("scale", 3), ("rot", 4)))
    assert list(names) == ["x", "y", "z", "nx", "ny", "nz", *dc, *rest, "opacity", *scales, *rotation]
    assert len(names) == 62
    again = read_splats(path)
    assert again.harmonics.abs().amax((0, 2)).gt(0).sum() == functions(degree) - 1
    for name in ("colours", "opacity_logits", "log_scales"):
        torch.testing.assert_close(again.get_parameter(name), scene.get_parameter(name), rtol=1e-6, atol=1e-6)
    views = Cameras.look_at_origin(torch.tensor([0.0, 70.0]), torch.tensor([10.0, 50.0]), height=24, width=24)
    torch.testing.assert_close(look(again, in_splat_axes(views)).rgb, look(scene, views).rgb, rtol=1e-4, atol=1e-5)


def test_splats_stand_upright_in_a_viewer() -> None:
    """The world's up is the viewer's y, and the front (+x) faces the viewer's camera (+z); nothing is mirrored."""
    to_viewer = HALF_TURN @ WORLD_TO_FILE
    assert (to_viewer @ torch.tensor([0.0, 0.0, 1.0])).tolist() == [0, 1, 0]
    assert (to_viewer @ torch.tensor([1.0, 0.0, 0.0])).tolist() == [0, 0, 1]
    assert torch.linalg.det(WORLD_TO_FILE) == 1


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_harmonics_turn_with_the_object(degree: int) -> None:
    """By a rotation of no special angles: at the turned direction the turned function has the old value."""
    rng = torch.Generator().manual_seed(0)
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=rng, dtype=torch.float64))
    turn = turn * torch.linalg.det(turn)
    coefficients = torch.randn(2 * degree + 1, generator=rng, dtype=torch.float64)
    directions = torch.nn.functional.normalize(torch.randn(20, 3, generator=rng, dtype=torch.float64), dim=-1)
    before = basis(degree, directions) @ coefficients
    after = basis(degree, directions @ turn.T) @ (harmonics_rotation(degree, turn) @ coefficients)
    torch.testing.assert_close(after, before)


def test_results_need_no_mesh(tmp_path: Path) -> None:
    """`--format splat` alone writes no mesh, and takes no time for one."""
    mesh, files = results.export(Gaussians(GaussiansConfig(count=5), seeded()), MeshConfig(formats=["splat"]), tmp_path)
    assert mesh is None and [file.name for file in files] == ["splat.ply"]
