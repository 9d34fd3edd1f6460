"""Gaussians: how they are drawn, how their number changes, and what leaves the program."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from rich.console import Console
from scipy.special import sph_harm_y
from torch import Tensor

from carv3d import backends, results
from carv3d.allocation import Allocation
from carv3d.cameras import Cameras
from carv3d.config import Config, Ramp, schema, validate
from carv3d.errors import UserError
from carv3d.generation import generate, load_trained
from carv3d.mesh import extract, load
from carv3d.moments import carry_moments
from carv3d.renderers import Render, SplatRenderer, splatting
from carv3d.runs import Run
from carv3d.scenes import Densification, Footprints, Gaussians
from carv3d.scenes.spherical_harmonics import basis
from carv3d.scenes.splat_file import to_ply
from carv3d.teachers import ExactTeacher
from carv3d.training import Trainer
from tests.test_cli import carv3d


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cloud(count: int = 40, degree: int = 0, seed: int = 0, spread: float = 0.12) -> Gaussians:
    """Gaussians of all sizes, directions, opacities and colours, in float64."""
    scene, rng = Gaussians(count=count, degree=degree, generator=seeded(seed)).double(), seeded(seed + 1)
    with torch.no_grad():
        for parameter in scene.parameters():
            parameter.normal_(generator=rng)
        scene.positions.mul_(0.4)
        scene.log_scales.mul_(0.4).add_(math.log(spread))
        scene.colours.mul_(0.3)
        if degree:
            scene.harmonics.mul_(0.1)
    return scene


def cameras(count: int = 2, size: int = 12) -> Cameras:
    azimuth, elevation = torch.linspace(-20, 100, count), torch.linspace(5, 40, count)
    found = Cameras.look_at_origin(azimuth, elevation, height=size, width=size + 3)
    return replace(found, c2w=found.c2w.double(), intrinsics=found.intrinsics.double())


def look(scene: Gaussians, views: Cameras, **options: bool) -> Render:
    found: Render = SplatRenderer()(scene, views, training=False, **options)
    return found


def brute_force(scene: Gaussians, views: Cameras) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """rgb, opacity and depth by the formulas, one pixel and one Gaussian after the other."""
    numbers = {name: value.detach().numpy() for name, value in scene.named_parameters()}
    shape = (len(views), views.height, views.width)
    rgb, opacity, depths = np.ones((*shape, 3)), np.zeros(shape), np.zeros(shape)
    for r in range(len(views)):
        c2w, intrinsics = views.c2w[r].numpy(), views.intrinsics[r].numpy()
        splats = []
        for i in range(len(scene)):
            w, x, y, z = numbers["rotations"][i] / np.linalg.norm(numbers["rotations"][i])
            cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
            turn = np.eye(3) + 2 * w * cross + 2 * cross @ cross  # Rodrigues
            sigma = turn @ np.diag(np.exp(2 * numbers["log_scales"][i])) @ turn.T
            local = np.diag([1, -1, -1]) @ c2w[:3, :3].T @ (numbers["positions"][i] - c2w[:3, 3])
            fx, fy, (tx, ty, tz) = intrinsics[0, 0], intrinsics[1, 1], local
            jacobian = np.array([[fx / tz, 0, -fx * tx / tz**2], [0, fy / tz, -fy * ty / tz**2]])
            onto = jacobian @ np.diag([1, -1, -1]) @ c2w[:3, :3].T
            sharp = onto @ sigma @ onto.T
            wide = sharp + 0.3 * np.eye(2)
            faint = math.sqrt(np.linalg.det(sharp) / np.linalg.det(wide))
            alpha = faint / (1 + math.exp(-numbers["opacity_logits"][i]))
            centre = np.array([fx * tx / tz + intrinsics[0, 2], fy * ty / tz + intrinsics[1, 2]])
            towards = torch.from_numpy(numbers["positions"][i] - c2w[:3, 3])
            colour = scene.rgb((towards / towards.norm()).expand(len(scene), 3))[i].detach().numpy()
            splats.append((tz, centre, np.linalg.inv(wide), alpha, colour))
        for row in range(views.height):
            for column in range(views.width):
                light, image = 1.0, np.zeros(3)
                for depth, centre, inverse, peak, colour in sorted(splats, key=lambda splat: splat[0]):
                    offset = np.array([column + 0.5, row + 0.5]) - centre
                    alpha = min(0.999, peak * math.exp(-0.5 * offset @ inverse @ offset))
                    if alpha >= 1 / 255:
                        image += light * alpha * colour
                        depths[r, row, column] += light * alpha * depth
                        light *= 1 - alpha
                rgb[r, row, column] = image + light
                opacity[r, row, column] = 1 - light
    return rgb, opacity, depths


@pytest.mark.parametrize("degree", [0, 3])
def test_render_is_the_formula(degree: int) -> None:
    """Colour, opacity and depth are those of a loop over pixels and Gaussians, in several views at once."""
    scene, views = cloud(degree=degree), cameras()
    found = look(scene, views)
    rgb, opacity, along_axis = brute_force(scene, views)
    np.testing.assert_allclose(found.rgb.detach().permute(0, 2, 3, 1), rgb, atol=1e-9)
    np.testing.assert_allclose(found.opacity[:, 0].detach(), opacity, atol=1e-9)
    _, directions = views.rays()
    forward = -views.c2w[:, None, None, :3, 2]
    expected = along_axis / np.maximum(opacity, 1e-9) / (directions * forward).sum(-1).numpy()
    hit = opacity > 1e-3
    np.testing.assert_allclose(found.depth[:, 0].detach().numpy()[hit], expected[hit], rtol=1e-9)
    assert 0.2 < opacity.mean() < 0.95  # there was something to see, and to see past


def test_spherical_harmonics_are_the_real_ones() -> None:
    """Against scipy's complex ones, in the order and with the signs of splat viewers."""
    directions = torch.nn.functional.normalize(torch.randn(50, 3, generator=seeded(), dtype=torch.float64), dim=-1)
    x, y, z = directions.numpy().T
    polar, azimuth = np.arccos(z), np.arctan2(y, x)
    for degree in (1, 2, 3):
        columns = []
        for m in range(-degree, degree + 1):
            value = sph_harm_y(degree, abs(m), polar, azimuth)
            part = value.real if m >= 0 else value.imag
            columns.append(part * (math.sqrt(2) if m else 1))
        np.testing.assert_allclose(basis(degree, directions).numpy(), np.stack(columns, -1), atol=1e-12)


def test_gradients_match_finite_differences() -> None:
    """The hand-written backward pass, through projection, colours and depth, for every parameter."""
    scene, views = cloud(12, degree=1, seed=3), cameras(size=10)
    weights = torch.rand(2, 5, 10, 13, generator=seeded(7), dtype=torch.float64)

    def loss() -> Tensor:
        found = look(scene, views)
        return (torch.cat([found.rgb, found.opacity, 0.1 * found.depth * (found.opacity > 0.1)], 1) * weights).sum()

    loss().backward()
    for name, parameter in scene.named_parameters():
        assert parameter.grad is not None
        direction = torch.randn(parameter.shape, generator=seeded(5), dtype=torch.float64)
        step, values = 1e-7, []
        with torch.no_grad():
            for sign in (1, -2):
                parameter.add_(direction, alpha=sign * step)
                values.append(loss())
            parameter.add_(direction, alpha=step)
        slope = (values[0] - values[1]) / (2 * step)
        torch.testing.assert_close((parameter.grad * direction).sum(), slope, rtol=1e-5, atol=1e-5, msg=name)


def test_blending_passes_gradcheck() -> None:
    """Every single derivative of the blending, its clamp at full opacity included."""
    scene, views = cloud(6, seed=2), cameras(1, 5)
    found: list[Tensor] = []

    def spy(*arguments: Tensor) -> Tensor:
        found.extend(arguments)
        return original(*arguments)

    original, splatting_module = splatting.composite, __import__("carv3d.renderers.splat", fromlist=["composite"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splatting_module, "composite", spy)
        look(scene, views)
    *inputs, boxes = found
    inputs = [value.detach().requires_grad_() for value in inputs]
    with torch.no_grad():
        inputs[2][0] = 0.9995
    assert torch.autograd.gradcheck(lambda *x: original(*x, boxes), inputs, eps=1e-7, atol=1e-5)


def test_order_and_company_do_not_matter() -> None:
    """The same picture for Gaussians in another order, and for a view alone or among others."""
    scene, views = cloud(), cameras(3)
    before = look(scene, views, normals=True)
    alone = look(scene, views[1:2], normals=True)
    torch.testing.assert_close(alone.rgb, before.rgb[1:2])
    torch.testing.assert_close(alone.normal, before.normal[1:2])  # type: ignore[index]
    shuffled = torch.randperm(len(scene), generator=seeded())
    for parameter in scene.parameters():
        parameter.data = parameter.data[shuffled]
    torch.testing.assert_close(look(scene, views).rgb, before.rgb)


def test_bands_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """With little memory the image comes in bands of rows: the same picture and gradients."""
    found = []
    for candidates in (splatting.CANDIDATES, 500):
        monkeypatch.setattr(splatting, "CANDIDATES", candidates)
        scene = cloud()
        render = look(scene, cameras())
        (render.rgb.square().sum() + render.depth.sum()).backward()
        found.append([render.rgb, render.depth, *[p.grad for p in scene.parameters()]])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_normals_face_the_camera_and_follow_the_surface() -> None:
    """A ball of small opaque Gaussians has radial normals, of length at most the opacity."""
    scene = Gaussians(count=3000, radius=0.5, opacity=0.9, generator=seeded())
    views = Cameras.look_at_origin(torch.tensor([30.0]), torch.tensor([20.0]), height=48, width=48)
    render = look(scene, views, normals=True)
    assert render.normal is not None and (render.normal.norm(dim=1) <= render.opacity[:, 0] + 1e-5).all()
    origins, directions = views.rays()
    where = torch.nn.functional.normalize((origins + render.depth[:, 0, ..., None] * directions), dim=-1)
    facing = (where.permute(0, 3, 1, 2) * render.normal).sum(1)[render.opacity[:, 0] > 0.95]
    assert facing.mean() > 0.9


def test_nothing_and_the_degenerate_are_drawn_without_nan() -> None:
    """No Gaussian in view, one of no size, one without a rotation, one behind the camera: finite all through."""
    scene, views = Gaussians(count=4, generator=seeded()), cameras(1)
    views = replace(views, c2w=views.c2w.float(), intrinsics=views.intrinsics.float())
    with torch.no_grad():
        scene.log_scales[0] = -60.0
        scene.rotations[1] = 0.0
        scene.positions[2] = 2 * views.c2w[0, :3, 3]
        scene.log_scales[3, 1:] = -60.0
    render = look(scene, views, normals=True)
    (render.rgb.sum() + render.depth.sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in scene.parameters())
    with torch.no_grad():
        scene.positions.fill_(50.0)
        empty = look(scene, views, normals=True)
    assert (empty.rgb == 1).all() and (empty.opacity == 0).all() and empty.normal is not None


# ------------------------------------------------------------------------------------ how the number changes


RULE = Densification(every=1, begin=0.0, end=1.0, gradient=1.0, split_scale=0.1, prune_opacity=0.0, prune_scale=9.0)


def noted(count: int = 200, **rule: float) -> Gaussians:
    """A ball of Gaussians of two sizes, with gradients noted for the first half of them."""
    scene = Gaussians(count=count, opacity=0.5, densify=replace(RULE, **rule), generator=seeded())
    with torch.no_grad():
        scene.log_scales[::2] = math.log(0.12)
        scene.log_scales[1::2] = math.log(0.06)
        scene.gradient_sum[: count // 2] = 1.0
        scene.times_seen.fill_(1.0)
    return scene


def test_densifying_keeps_the_picture() -> None:
    """Cloned and split Gaussians look nearly as before: the scene does not have to be learned again."""
    views = Cameras.look_at_origin(torch.tensor([0.0, 90.0]), torch.tensor([10.0, 30.0]), height=48, width=48)
    scene = noted(400)
    before = look(scene, views)
    changed = scene.after_step(1, 0.5, None, seeded())
    assert changed is not None and len(scene) == 600 == len(changed.parents)
    after = look(scene, views)
    assert (after.rgb - before.rgb).square().mean().sqrt() < 0.03
    assert (after.opacity.mean() - before.opacity.mean()).abs() < 0.02
    # Half of them were large and shrank, half were small and kept their size.
    assert torch.equal(changed.parents[400:], torch.arange(200))
    torch.testing.assert_close(scene.scales[400::2], torch.full((100, 3), 0.12 / 1.6))
    torch.testing.assert_close(scene.scales[401::2], torch.full((100, 3), 0.06))
    # Two twins hide what one hid.
    torch.testing.assert_close(1 - (1 - scene.opacities[401::2]) ** 2, torch.full((100,), 0.5))


def test_densifying_is_drawn_from_the_generator() -> None:
    """The same generator, the same Gaussians; another one, others."""
    found = []
    for seed in (1, 1, 2):
        scene = noted()
        scene.after_step(1, 0.5, None, seeded(seed))
        found.append(scene.positions.detach())
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_moments_follow_their_gaussians() -> None:
    """Adam's moments of every row are those of the row it comes from; a reset parameter has none."""
    scene = noted(reset_every=1, prune_opacity=0.1)
    with torch.no_grad():
        scene.opacity_logits[50:60] = -5.0  # too faint: pruned
    optimizer = torch.optim.Adam(scene.parameter_groups(0.001))
    weights = [torch.rand(p.shape, generator=seeded(i)) for i, p in enumerate(scene.parameters())]
    sum((p * w).sum() for p, w in zip(scene.parameters(), weights, strict=True)).backward()  # type: ignore[union-attr]
    optimizer.step()
    before = [optimizer.state[p]["exp_avg"].clone() for p in scene.parameters()]
    changed = scene.after_step(1, 0.5, None, seeded())
    assert changed is not None
    carry_moments(optimizer, list(scene.parameters()), changed)
    for parameter, old in zip(scene.parameters(), before, strict=True):
        state = optimizer.state[parameter]
        assert state["exp_avg"].shape == state["exp_avg_sq"].shape == parameter.shape
        renewed = parameter is scene.opacity_logits
        assert torch.equal(state["exp_avg"], torch.zeros_like(parameter) if renewed else old[changed.parents])
    assert not set(range(50, 60)) & set(changed.parents.tolist())
    assert scene.opacities.max() <= 0.2001
    sum(p.square().sum() for p in scene.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()


def test_every_render_of_a_step_counts() -> None:
    """Two views in one step leave the same notes as a step each, of half the loss."""
    notes = []
    for groups in ([slice(0, 2)], [slice(0, 1), slice(1, 2)]):
        scene, views = cloud(), cameras()
        for part in groups:
            render = look(scene, views[part])
            (render.rgb.square().sum() / len(views[part])).backward()
            assert render.footprints is not None
            scene.after_step(1, 0.99, render.footprints, seeded())
        notes.append((scene.gradient_sum, scene.times_seen))
    torch.testing.assert_close(*[note[0] for note in notes])
    assert torch.equal(*[note[1] for note in notes]) and notes[0][1].max() == 2


def test_the_cap_takes_the_largest_gradients_first() -> None:
    """With room for three, the three whose places the teacher wants to change most are densified."""
    scene = noted(most=203)
    with torch.no_grad():
        scene.gradient_sum[[11, 42, 80]] = torch.tensor([5.0, 7.0, 6.0])
    changed = scene.after_step(1, 0.5, None, seeded())
    assert changed is not None and changed.parents[200:].tolist() == [11, 42, 80]


@pytest.mark.parametrize("threshold", ["prune_opacity", "prune_scale", "bound"])
def test_all_pruned_names_the_threshold(threshold: str) -> None:
    """An empty scene would train on in silence."""
    scene = noted(
        20, **{"prune_opacity": {"prune_opacity": 0.9}, "prune_scale": {"prune_scale": 0.001}}.get(threshold, {})
    )  # type: ignore[arg-type]
    if threshold == "bound":
        with torch.no_grad():
            scene.positions += 5.0
    with pytest.raises(UserError, match=rf"step 1: every one of the \d+ Gaussians is pruned: \d+ .*{threshold}="):
        scene.after_step(1, 0.5, None, seeded())


def test_automatic_resamples_live_with_a_changing_number() -> None:
    """Probes of scenes of different sizes are not compared; the next two of one size are."""
    allocation = Allocation(cost_ratio=4.0)
    for step, count in enumerate((5, 7, 7)):
        parameter = torch.ones(count, requires_grad=True)
        draws = torch.randn(2, 1, 3, generator=seeded(step))
        allocation.probe(step, parameter.sum() * torch.ones(1, 3), draws[0], draws[1], [parameter])
        assert (allocation.between != 0) == (step == 2)


def test_nothing_changes_outside_its_part_of_the_run() -> None:
    """Before `begin` and after `end`, and between two times, the number stays."""
    scene = noted(begin=0.2, end=0.6, every=2)
    found = [scene.after_step(step, at, None, seeded()) for step, at in ((2, 0.1), (2, 0.7), (3, 0.4))]
    assert found == [None] * 3 and scene.after_step(4, 0.4, None, seeded()) is not None


# ------------------------------------------------------------------------------------ runs


def small(**scene: object) -> Config:
    """A run of some seconds that densifies twice before half of it."""
    config = Config(prompt="a red cone", seed=3, threads=1)
    config.teacher = schema.ExactTeacher(views=20, neighbours=4)
    densify = schema.Densification(every=3, begin=0.0, end=0.6, gradient=1.2)
    config.scene = schema.Gaussians(count=150, spread=0.7, densify=densify, **scene)  # type: ignore[arg-type]
    config.cameras.height = config.cameras.width = 32
    config.guidance.renders = 2
    config.training = schema.Training(steps=12, preview_every=0, checkpoint_every=8, keep_checkpoints=2)
    config.turntable = schema.Turntable(frames=2, size=32)
    config.mesh = schema.Mesh(formats=[])
    return config


@pytest.fixture(scope="module")
def teacher() -> ExactTeacher:
    return ExactTeacher(views=20, neighbours=4)


def test_resuming_after_densification_gives_the_same_numbers(teacher: ExactTeacher) -> None:
    """A checkpoint holds however many Gaussians there are, their notes and their moments."""
    config = small(degree=1)
    config.regularisers.gaussian_opacity = config.regularisers.gaussian_scale = Ramp(0.1, 0.1)
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


@pytest.mark.parametrize("name", ["gaussian_opacity", "gaussian_scale", "gaussian_position", "opacity", "sparsity"])
def test_every_regulariser_reaches_the_gradient(teacher: ExactTeacher, name: str) -> None:
    """A weight in the config changes the step; zero leaves it alone."""
    found = []
    for weight in (0.0, 50.0):
        config = small()
        setattr(config.regularisers, name, Ramp(weight, weight))
        trainer = Trainer(config, teacher)
        trainer.step()
        found.append(torch.cat([p.detach().flatten() for p in trainer.scene.parameters()]))
    assert not torch.equal(*found)


def test_a_run_leaves_pictures_a_mesh_and_splats(tmp_path: Path, teacher: ExactTeacher) -> None:
    """The whole of `generate`; what is loaded again draws the same, though the point cloud is gone."""
    points = torch.randn(200, 3, generator=seeded()).mul(0.2).clamp(-0.6, 0.6).numpy()
    source = tmp_path / "points.ply"
    trimesh.PointCloud(points, colors=np.tile(np.uint8([255, 0, 0, 255]), (200, 1))).export(source)
    config = small(points=str(source), opacity=0.6)
    config.mesh = schema.Mesh(formats=["glb", "splat"], resolution=32, faces=300, texture="vertex")
    validate(config)
    with Run.create(config, "gaussians", "test", folder=tmp_path / "run") as run:
        generate(run, resume=False, console=Console(quiet=True), teacher=teacher)
        source.unlink()
        trained = load_trained(run)
        assert (run.path / "contact_sheet.png").is_file() and run.turntable.is_file()
        assert len(load(run.mesh / "mesh.glb").faces) > 100
        again = Gaussians(count=1, generator=seeded())
        _take_ply(again, run.mesh / "splat.ply")
    views = Cameras.look_at_origin(torch.tensor([0.0]), torch.tensor([10.0]), height=32, width=32)
    torch.testing.assert_close(look(again, views).rgb, look(trained.scene, views).rgb)  # type: ignore[arg-type]


def test_the_command_line_takes_gaussians(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Generate from the shipped config, export the splats again, evaluate; a bad file leaves no folder."""
    out = str(tmp_path / "run")
    quick = ["teacher.type=exact", "teacher.views=20", "teacher.neighbours=4", "threads=1", "training.steps=4"]
    quick += ["scene.count=100", "turntable.frames=2", "turntable.size=32", "mesh.formats=[ply]", "mesh.resolution=24"]
    quick += ["scene.opacity=0.6", "mesh.texture=vertex", "training.preview_every=0", "--output", out]
    bad = tmp_path / "bad.ply"
    bad.write_text(_ply(f"element vertex 1\n{XYZ}", "0 nan 0\n"))
    code, _, err = carv3d("generate", "gaussians", "a red cone", f"scene.points={bad}", *quick, capsys=capsys)
    assert code == 2 and "1 of 1 points are not finite" in err and not Path(out).exists()
    assert carv3d("generate", "gaussians", "a red cone", *quick, capsys=capsys)[0] == 0
    code, said, _ = carv3d("export", out, "--format", "splat", "--json", capsys=capsys)
    assert code == 0 and [Path(file).name for file in json.loads(said)["files"]] == ["splat.ply"]
    code, said, _ = carv3d("evaluate", out, "--json", capsys=capsys)
    assert code == 0 and json.loads(said)["mesh_iou"] > 0


# ------------------------------------------------------------------------------------ files and meshes


def _take_ply(scene: Gaussians, path: Path) -> None:
    """Read a splat file by trimesh's parser, which knows nothing of ours."""
    loaded = trimesh.load(path, process=False)
    columns = loaded.metadata["_ply_raw"]["vertex"]["data"]

    def take(*names: str) -> Tensor:
        return torch.from_numpy(np.stack([columns[name].ravel() for name in names], -1).astype(np.float32))

    n = len(columns["x"])
    state = {
        "positions": take("x", "y", "z"),
        "colours": take("f_dc_0", "f_dc_1", "f_dc_2"),
        "opacity_logits": take("opacity")[:, 0],
        "log_scales": take("scale_0", "scale_1", "scale_2"),
        "rotations": take("rot_0", "rot_1", "rot_2", "rot_3"),
        "gradient_sum": torch.zeros(n),
        "times_seen": torch.zeros(n),
    }
    if scene.degree:
        rest = [name for name in columns.dtype.names if name.startswith("f_rest_")]
        state["harmonics"] = take(*rest).view(n, 3, -1).mT
    scene.load_state_dict(state)


@pytest.mark.parametrize("degree", [0, 3])
def test_splat_files_open_elsewhere_and_draw_the_same(tmp_path: Path, degree: int) -> None:
    """Columns in the order that viewers expect; read by another program they are the same scene."""
    scene = cloud(degree=degree).float()
    path = tmp_path / "splat.ply"
    path.write_bytes(to_ply(scene))
    names = [line.split()[-1] for line in path.read_bytes().split(b"end_header")[0].decode().splitlines()[3:]]
    rest = [f"f_rest_{i}" for i in range(45 if degree else 0)]
    dc, scales, rotation = ([f"{name}_{i}" for i in range(n)] for name, n in (("f_dc", 3), ("scale", 3), ("rot", 4)))
    assert names == ["x", "y", "z", "nx", "ny", "nz", *dc, *rest, "opacity", *scales, *rotation]
    again = Gaussians(count=1, degree=degree, generator=seeded())
    _take_ply(again, path)
    views = Cameras.look_at_origin(torch.tensor([0.0, 70.0]), torch.tensor([10.0, 50.0]), height=24, width=24)
    torch.testing.assert_close(look(again, views).rgb, look(scene, views).rgb)


def test_density_hides_as_much_as_the_gaussian() -> None:
    """Along a line through a round Gaussian the sampled density absorbs its opacity; its colour is the Gaussian's."""
    scene = Gaussians(count=1, generator=seeded())
    with torch.no_grad():
        scene.positions.zero_()
        scene.log_scales.fill_(math.log(0.1))
        scene.opacity_logits.fill_(torch.tensor(0.8).logit())
        scene.colours[0] = torch.tensor([1.0, 0.0, -1.0])
    field = scene.field(65)
    line = torch.stack([torch.linspace(-1, 1, 2001), torch.zeros(2001), torch.zeros(2001)], -1)
    absorbed = 1 - math.exp(-field.density(line).sum().item() * 0.001)
    assert absorbed == pytest.approx(0.8, abs=0.02)
    density, rgb = field.query(torch.tensor([[0.0, 0.05, 0.0], [0.9, 0, 0], [3.0, 0, 0]]))
    torch.testing.assert_close(rgb[0], scene.rgb()[0], atol=1e-4, rtol=0)
    assert density[0] > 1 and (density[1:] == 0).all()


def test_mesh_of_a_ball_of_gaussians_is_the_ball() -> None:
    """One closed surface of the ball's size, without holes."""
    scene = Gaussians(count=1500, radius=0.5, opacity=0.9, generator=seeded())
    mesh = extract(scene.field(48), resolution=48, threshold=0.5)
    assert mesh.info["watertight"]
    radius = np.linalg.norm(mesh.vertices, axis=1)
    assert radius.min() > 0.4 and radius.max() < 0.65


def _ply(header: str, rows: str) -> str:
    return f"ply\nformat ascii 1.0\n{header}end_header\n{rows}"


XYZ = "property float x\nproperty float y\nproperty float z\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (_ply(f"element vertex 0\n{XYZ}", ""), "no points"),
        (_ply(f"element vertex 2\n{XYZ}", "0 0 nan\n0 0 0\n"), "1 of 2 points are not finite"),
        (_ply("element vertex 1\nproperty float x\nproperty float y\n", "0 0\n"), "x, y, z"),
        (_ply(f"element vertex 2\n{XYZ}", "0 0 0\n0 0 4\n"), "1 of 2 points lie outside the cube"),
        ("not a ply at all\n", "x, y, z"),
        ("", "x, y, z"),
    ],
)
def test_a_bad_point_cloud_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    """What is wrong with the file and what to do, before any training."""
    path = tmp_path / "points.ply"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        Gaussians(points=str(path), generator=seeded())
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_a_point_cloud_gives_places_colours_and_sizes(tmp_path: Path) -> None:
    """Positions and colours of the file; sizes from the neighbours' distance; grey without colours."""
    corners = np.array([[x, y, z] for x in (0, 0.1) for y in (0, 0.1) for z in (0, 0.1)], np.float32)
    path = tmp_path / "points.ply"
    trimesh.PointCloud(corners, colors=np.tile(np.uint8([255, 0, 51, 255]), (8, 1))).export(path)
    scene = Gaussians(points=str(path), spread=0.5, generator=seeded())
    torch.testing.assert_close(scene.positions.detach(), torch.from_numpy(corners))
    torch.testing.assert_close(scene.scales.detach(), torch.full((8, 3), 0.05))
    torch.testing.assert_close(scene.rgb()[0].detach(), torch.tensor([1, 0, 0.2]), atol=0.01, rtol=0)
    with pytest.raises(UserError, match="no point cloud"):
        Gaussians(points=str(tmp_path / "missing.ply"), generator=seeded())
    path.write_text(_ply(f"element vertex 1\n{XYZ}", "0 0 0\n"))  # one point has no neighbour
    torch.testing.assert_close(Gaussians(points=str(path), generator=seeded()).rgb()[0].detach(), torch.full((3,), 0.5))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("regularisers.total_variation", Ramp(1, 1), r"total_variation must be 0 \(scene\.type=gaussians has no such"),
        ("scene.densify.begin", 0.9, "scene.densify.begin and .end must be in order"),
        ("scene.opacity", 1.0, "scene.opacity must be between 0 and 1"),
        ("scene.degree", 4, "scene.degree must be from 0 to 3"),
        ("scene.radius", 2.0, "scene.radius must be at most scene.bound"),
    ],
)
def test_values_that_make_no_run(key: str, value: object, message: str) -> None:
    """Found before anything is built."""
    config = small()
    section, name = config, key.split(".")
    for part in name[:-1]:
        section = getattr(section, part)
    setattr(section, name[-1], value)
    with pytest.raises(UserError, match=message):
        validate(config)


def test_what_is_of_gaussians_is_not_of_fields() -> None:
    """A field has no splats to write, no gsplat to draw it, no Gaussians to keep small."""
    for key, value in (
        ("mesh.formats", ["splat"]),
        ("renderer.backend", "gsplat"),
        ("regularisers.gaussian_scale", Ramp(1, 1)),
    ):
        config = Config(prompt="a red cone")
        section, name = key.split(".")
        setattr(getattr(config, section), name, value)
        with pytest.raises(UserError, match=key):
            validate(config)


# ------------------------------------------------------------------------------------ gsplat


def test_gsplat_without_cuda_is_refused_and_auto_is_torch() -> None:
    """The device decides; asked for by name, the reason is said."""
    assert SplatRenderer(backend="auto", device=torch.device("cpu")).backend == "torch"
    with pytest.raises(UserError, match=r"renderer\.backend=gsplat, but gsplat .*: use renderer\.backend=torch"):
        SplatRenderer(backend="gsplat", device=torch.device("cpu"))


def test_doctor_tries_every_backend() -> None:
    """One line each: its time where it runs, the reason where it does not; what is optional is no failure."""
    found = {trial.name: trial for trial in backends.examine()}
    assert list(found) == ["torch splat", "gsplat", "torch volume", "nerfacc"]
    assert all(trial.ok and "\n" not in trial.found for trial in found.values())
    for name in ("torch splat", "torch volume"):
        assert " ms (64 x 64" in found[name].found
    assert found["gsplat"].found and (torch.cuda.is_available() or " ms" not in found["gsplat"].found)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available() or find_spec("gsplat") is None, reason="needs CUDA and gsplat")
def test_gsplat_agrees_with_torch() -> None:
    """Pictures, and gradients in direction and size."""
    views = Cameras.look_at_origin(torch.tensor([0.0, 70.0]), torch.tensor([10.0, 50.0]), height=64, width=64)
    found = []
    for backend in ("torch", "gsplat"):
        scene = cloud(300, degree=2).float().cuda()
        renderer = SplatRenderer(backend=backend, device=torch.device("cuda"))  # type: ignore[arg-type]
        render = renderer(scene, views.to("cuda"), training=False)
        (render.rgb.square().mean() + render.opacity.mean()).backward()
        footprints = render.footprints
        assert isinstance(footprints, Footprints) and footprints.centres.grad is not None
        gradients = [p.grad for p in scene.parameters()] + [footprints.centres.grad]
        found.append(([render.rgb, render.opacity, render.depth], gradients))
    for one, other in zip(found[0][0], found[1][0], strict=True):
        torch.testing.assert_close(other, one, atol=2e-3, rtol=2e-3)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        assert torch.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.999
        assert ((other - one) * one.sign()).sum().abs() < 0.01 * one.abs().sum()


def test_results_need_no_mesh(tmp_path: Path) -> None:
    """`--format splat` alone writes no mesh, and takes no time for one."""
    mesh, files = results.export(Gaussians(count=5, generator=seeded()), schema.Mesh(formats=["splat"]), tmp_path)
    assert mesh is None and [file.name for file in files] == ["splat.ply"]
