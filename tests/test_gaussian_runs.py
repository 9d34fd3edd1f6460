"""Runs with Gaussians from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from rich.console import Console

from carv3d.cameras import Cameras
from carv3d.config import LinearSchedule, validate
from carv3d.generation.config import MeshConfig
from carv3d.generation.generation import generate, load_trained
from carv3d.mesh import load
from carv3d.runs import Run
from carv3d.scenes import Gaussians
from carv3d.teachers import ExactTeacher
from carv3d.teachers.config import ExactTeacherConfig
from carv3d.training.trainer import Trainer
from tests.gaussians import in_splat_axes, look, read_splats, seeded, small
from tests.test_cli import carv3d
from tests.test_point_cloud import XYZ, ply_text


@pytest.fixture(scope="module")
def teacher() -> ExactTeacher:
    return ExactTeacher(ExactTeacherConfig(views=20, neighbours=4))


def test_resuming_after_densification_gives_the_same_numbers(teacher: ExactTeacher) -> None:
    """A checkpoint holds however many Gaussians there are, their notes and their moments."""
    config = small(degree=1, lr_position=LinearSchedule(0.1, 0.01))
    config.regularisers.gaussian_opacity = config.regularisers.gaussian_scale = LinearSchedule(0.1, 0.1)
    whole = Trainer(config, teacher)
    counts = []
    for _ in range(12):
        whole.step()
        counts.append(len(whole.scene))  # type: ignore[arg-type]
        if whole.step_count == 5:
            step, (scene, state) = whole.step_count, whole.state()
            scene, state = ({k: v.clone() for k, v in tensors.items()} for tensors in (scene, state))
    assert counts[1] == 150 < counts[4] < counts[-1]
    resumed = Trainer(config, teacher, fresh=False)
    resumed.load_state(step, scene, state)
    while resumed.step_count < 12:
        resumed.step()
    for key, value in whole.scene.state_dict().items():
        assert torch.equal(resumed.scene.state_dict()[key], value), key


def test_a_learning_rate_that_ends_holds_its_parameter(teacher: ExactTeacher) -> None:
    """From where the ramp is 0 on positions stay where they are and colours go on."""
    config = small(lr_position=LinearSchedule(0.1, 0.0, 0.0, 0.5))
    config.scene.densify.every = 0
    trainer, found = Trainer(config, teacher), []
    for _ in range(8):
        trainer.step()
        scene = trainer.scene
        assert isinstance(scene, Gaussians)
        found.append((scene.positions.detach().clone(), scene.colours.detach().clone()))
    # Step 7 is the first that begins at half of the twelve.
    assert [torch.equal(found[k][0], found[k + 1][0]) for k in range(7)] == [False] * 5 + [True] * 2
    assert not any(torch.equal(found[k][1], found[k + 1][1]) for k in range(7))


def test_a_run_gets_over_a_reset_of_the_opacities(teacher: ExactTeacher) -> None:
    """All fade at once, with colours that depend on the direction, and what the teacher wants comes back."""
    config = small(degree=1, opacity=0.5)
    config.scene.densify.reset_every = 6
    trainer, found = Trainer(config, teacher), []
    for _ in range(12):
        trainer.step()
        scene = trainer.scene
        assert isinstance(scene, Gaussians)
        found.append(scene.opacities.detach().clone())
    assert found[4].mean() > 0.3 and found[5].max() <= 0.0401  # twice the pruning threshold
    assert found[11].mean() > 1.1 * found[5].mean() and len(found[11]) == len(found[5])


def test_a_run_leaves_pictures_a_mesh_and_splats(tmp_path: Path, teacher: ExactTeacher) -> None:
    """The whole of `generate`; what is loaded again draws the same, though the point cloud is gone."""
    points = torch.randn(200, 3, generator=seeded()).mul(0.2).clamp(-0.6, 0.6).numpy()
    source = tmp_path / "points.ply"
    trimesh.PointCloud(points, colors=np.tile(np.uint8([255, 0, 0, 255]), (200, 1))).export(source)
    config = small(points=str(source), opacity=0.6)
    config.mesh = MeshConfig(formats=["glb", "splat"], resolution=32, faces=300, texture="vertex")
    validate(config)
    with Run.create(config, "gaussians", "test", folder=tmp_path / "run") as run:
        generate(run, resumed=False, console=Console(quiet=True), teacher=teacher)
        source.unlink()
        trained = load_trained(run)
        assert (run.path / "contact_sheet.png").is_file() and run.turntable.is_file()
        assert len(load(run.mesh / "mesh.glb").faces) > 100
        again = read_splats(run.mesh / "splat.ply")
    views = Cameras.look_at_origin(torch.tensor([0.0]), torch.tensor([10.0]), height=32, width=32)
    expected = look(trained.scene, views).rgb  # type: ignore[arg-type]
    torch.testing.assert_close(look(again, in_splat_axes(views)).rgb, expected, rtol=1e-4, atol=1e-5)


def test_the_command_line_takes_gaussians(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Generate from the shipped config, export the splats again, evaluate; a bad file leaves no folder."""
    out = str(tmp_path / "run")
    quick = ["teacher.type=exact", "teacher.views=20", "teacher.neighbours=4", "threads=1", "training.steps=4"]
    quick += [
        "scene.count=100",
        "turntable.frames=2",
        "turntable.size=32",
        "turntable.sheet=32",
        "mesh.formats=[ply]",
        "mesh.resolution=24",
    ]
    quick += ["scene.opacity=0.6", "mesh.texture=vertex", "training.preview_every=0", "--output", out]
    bad = tmp_path / "bad.ply"
    bad.write_text(ply_text(f"element vertex 1\n{XYZ}", "0 nan 0\n"))
    code, _, err = carv3d("generate", "gaussians", "a red cone", f"scene.points={bad}", *quick, capsys=capsys)
    assert code == 2 and "1 of 1 points are not finite" in err and not Path(out).exists()
    assert carv3d("generate", "gaussians", "a red cone", *quick, capsys=capsys)[0] == 0
    code, said, _ = carv3d("export", out, "--format", "splat", "--json", capsys=capsys)
    assert code == 0 and [Path(file).name for file in json.loads(said)["files"]] == ["splat.ply"]
    code, said, _ = carv3d("evaluate", out, "--json", capsys=capsys)
    assert code == 0 and json.loads(said)["mesh_iou"] > 0
