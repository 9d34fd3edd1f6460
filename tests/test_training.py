"""The loop: it learns, it stops on nonsense, and it resumes with the same numbers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor

from carv3d.cameras import Cameras
from carv3d.config import Config, LinearSchedule
from carv3d.errors import UserError
from carv3d.evaluation.evaluation import Judge
from carv3d.generation.config import TrainingConfig, TurntableConfig
from carv3d.generation.generation import generate
from carv3d.guidance import Branch
from carv3d.runs import Run, read_metrics
from carv3d.scenes.config import GaussiansConfig, VoxelGridConfig
from carv3d.shapes import parse
from carv3d.teachers import ExactTeacher
from carv3d.teachers.config import ExactTeacherConfig
from carv3d.teachers.exact import ExactCondition
from carv3d.training.engine import fetch
from carv3d.training.trainer import Trainer
from tests.test_cli import carv3d


def small(steps: int = 12, **guidance: object) -> Config:
    """A run of some seconds: the exact teacher, a coarse grid, small pictures."""
    config = Config(prompt="a red cone", seed=3, threads=1)
    config.teacher = ExactTeacherConfig(views=40, neighbours=8)
    config.scene = VoxelGridConfig(resolution=16)
    config.cameras.height = config.cameras.width = 32
    config.renderer.samples = 24
    config.training = TrainingConfig(steps=steps, preview_every=0, checkpoint_every=4, keep_checkpoints=2)
    config.turntable = TurntableConfig(frames=2, size=32)
    config.mesh.formats = []
    for key, given in guidance.items():
        setattr(config.guidance, key, given)
    return config


def parameters(trainer: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.scene.parameters()])


@pytest.fixture(scope="module")
def teacher() -> ExactTeacher:
    return ExactTeacher(ExactTeacherConfig(views=40, neighbours=8))


class Joint(ExactTeacher):
    """Judges four views together: each by itself, and drawn towards the mean of their residuals."""

    joint_views = 4

    def condition(self, prompt: str, cameras: Cameras, negative: str = "") -> _Rows:
        self.seen = cameras
        return _Rows(super().condition(prompt, cameras, negative), torch.arange(len(cameras)).view(-1, 4))

    @torch.no_grad()
    def predict(  # type: ignore[override]
        self, z_t: Tensor, t: Tensor, condition: _Rows, branches: Sequence[Branch]
    ) -> dict[Branch, Tensor]:
        rows = condition.inner[condition.index.flatten()]
        alone = super().predict(z_t.flatten(0, 1), t.repeat_interleave(4), rows, branches)["cond"]
        alone = alone.unflatten(0, (-1, 4))
        return {"cond": 0.5 * (alone + alone.mean(1, keepdim=True))}


@dataclass
class _Rows:
    """R rows of four views each."""

    inner: ExactCondition
    index: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: Tensor) -> _Rows:
        return _Rows(self.inner, self.index[rows])


def test_teacher_that_judges_views_jointly() -> None:
    """Two renders are two rings of four cameras; the step is the average of each ring's, with chunks or without."""
    config = small(resamples=4, renders=2)
    teacher = Joint(ExactTeacherConfig(views=40, neighbours=8))
    gradients = []
    for chunk in (0, 3):
        config.guidance.chunk = chunk
        trainer = Trainer(config, teacher)
        log = trainer.step()
        assert log.t.shape == (2, 4)
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.scene.parameters() if p.grad is not None]))
    torch.testing.assert_close(gradients[0], gradients[1])
    azimuth = teacher.seen.azimuth.view(2, 4)
    assert torch.allclose((azimuth.diff(dim=1) - 90 + 180) % 360 - 180, torch.zeros(2, 3), atol=1e-3)
    again = Cameras.look_at_origin(teacher.seen.azimuth, teacher.seen.elevation, height=32, width=32)
    torch.testing.assert_close(teacher.seen.c2w, again.c2w, atol=1e-5, rtol=0)
    # By hand: the same draws, one ring after another.
    trainer = Trainer(config, teacher)
    trainer.set_schedules()
    trainer.renderer.update_occupancy(trainer.scene, 0, trainer.rng)
    _, z, condition = trainer.look(trainer.sampler.of_step(0, 2, trainer.rng), trainer.rng)
    found = trainer.carv.estimate(z, condition, trainer.rng)
    assert found.fbar.shape == (2, 4, 3, 32, 32)
    total = sum((z[r] * found.fbar[r]).sum() / 2 for r in range(2))
    assert isinstance(total, Tensor)
    trainer.optimizer.zero_grad()
    total.backward()
    mine = torch.cat([p.grad.flatten() for p in trainer.scene.parameters() if p.grad is not None])
    torch.testing.assert_close(mine, gradients[0], rtol=1e-4, atol=1e-6)


def test_learns_the_object(teacher: ExactTeacher) -> None:
    """A hundred steps of the whole loop bring the pictures of the blob 3 dB nearer to the true object."""
    config = small(100, resamples=4)
    trainer, judge, thing = Trainer(config, teacher), Judge(32), parse("a red cone")

    def psnr() -> float:
        with torch.no_grad():
            render = trainer.renderer(trainer.scene, judge.cameras, training=False)
        return judge.score(thing, render.rgb, render.opacity).psnr

    before = psnr()
    for _ in range(100):
        trainer.step()
    assert psnr() > before + 3


@pytest.mark.parametrize("background", ["white", "learned"])
def test_state_reproduces_the_next_steps_bit_for_bit(teacher: ExactTeacher, background: str) -> None:
    """Scene, optimiser, occupancy, generator: nothing that a step depends on is left out of `state`."""
    config = small(resamples=2)
    config.renderer.background, config.renderer.occupancy_every = background, 5
    whole = Trainer(config, teacher)
    for _ in range(7):
        whole.step()
    scene, state = ({k: v.clone() for k, v in part.items()} for part in whole.state())
    for _ in range(5):
        whole.step()
    resumed = Trainer(config, teacher)
    resumed.load_state(7, scene, state)
    for _ in range(5):
        resumed.step()
    assert torch.equal(parameters(whole), parameters(resumed))


def test_killed_run_resumes_with_the_same_parameters(tmp_path: Path) -> None:
    """kill -9 at an arbitrary moment, --resume, and the final checkpoint is that of a run left alone."""
    common = ["shapes", "a red cone", "teacher.type=exact", "teacher.views=40", "teacher.neighbours=8", "threads=1"]
    common += ["scene.resolution=16", "cameras.height=32", "cameras.width=32", "renderer.samples=24"]
    common += [
        "training.steps=24",
        "training.checkpoint_every=4",
        "training.preview_every=0",
        "mesh.formats=[]",
    ]
    common += ["turntable.frames=2", "turntable.size=32", "turntable.sheet=32"]
    assert carv3d("generate", *common, "--output", str(tmp_path / "whole"))[0] == 0
    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "carv3d", "generate", *common, "--output", str(killed)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while len(list(killed.glob("checkpoints/step_*"))) < 2 and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    assert carv3d("generate", "--resume", str(killed))[0] == 0
    with Run.open(tmp_path / "whole") as one, Run.open(killed) as two:
        first, second = one.load_checkpoint(), two.load_checkpoint()
        assert first.step == second.step == 24
        for part in ("trained", "state"):
            a, b = getattr(first, part), getattr(second, part)
            assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
        logs = [
            [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(r.metrics_path)]
            for r in (one, two)
        ]
    assert logs[0] == logs[1] and len(logs[0]) == 24


def test_interrupt_finishes_the_step_and_saves_it(tmp_path: Path, teacher: ExactTeacher) -> None:
    """Ctrl-C loses nothing: the checkpoint is of the step in hand, though none was due."""
    config = small(1000)
    config.training.checkpoint_every = 0
    with Run.create(config, "test", "test", folder=tmp_path / "run") as run:
        steps = 0
        ask = teacher.predict

        def interrupt(*args: object) -> dict[Branch, Tensor]:
            nonlocal steps
            steps += 1
            if steps == 6:
                os.kill(os.getpid(), signal.SIGINT)
            return ask(*args)  # type: ignore[arg-type]

        teacher.predict = interrupt  # type: ignore[method-assign, assignment]
        try:
            with pytest.raises(KeyboardInterrupt):
                generate(run, resumed=False, console=Console(quiet=True), teacher=teacher)
        finally:
            teacher.predict = ask  # type: ignore[method-assign]
        assert run.load_checkpoint().step == 6
        assert len(read_metrics(run.metrics_path)) == 6


def test_nan_names_step_and_timesteps_and_is_not_saved(tmp_path: Path, teacher: ExactTeacher) -> None:
    """The checkpoint before stays the newest."""
    config = small(20)
    with Run.create(config, "test", "test", folder=tmp_path / "run") as run:
        calls = 0
        ask = teacher.predict

        def spoil(*args: object) -> dict[Branch, Tensor]:
            nonlocal calls
            calls += 1
            found = ask(*args)  # type: ignore[arg-type]
            return {k: v * (float("nan") if calls == 7 else 1) for k, v in found.items()}

        teacher.predict = spoil  # type: ignore[method-assign, assignment]
        try:
            with pytest.raises(UserError, match=r"step 7: .*not finite at timesteps \[\d+.*resume"):
                generate(run, resumed=False, console=Console(quiet=True), teacher=teacher)
        finally:
            teacher.predict = ask  # type: ignore[method-assign]
        assert run.load_checkpoint().step == 4


def test_each_step_renders_and_encodes_once(teacher: ExactTeacher, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reuse is the point: K resamples cost one render, one encode and one teacher call of R K rows."""
    trainer = Trainer(small(renders=2, resamples=4), teacher)
    trainer.step()  # the teacher makes its reference pictures
    counts = {"encode": 0, "rows": []}
    encode, predict = teacher.encode, teacher.predict

    def counted_encode(*args):  # type: ignore[no-untyped-def]
        counts["encode"] += 1
        return encode(*args)

    def counted_predict(z, *args):  # type: ignore[no-untyped-def]
        counts["rows"].append(len(z))
        return predict(z, *args)

    monkeypatch.setattr(teacher, "encode", counted_encode)
    monkeypatch.setattr(teacher, "predict", counted_predict)
    trainer.step()
    assert counts == {"encode": 1, "rows": [8]}


def test_figures_are_reported() -> None:
    """What the progress bar and the metrics show."""
    trainer = Trainer(small(resamples=3), ExactTeacher(ExactTeacherConfig(views=24, neighbours=4)))
    [row] = fetch([trainer.step()])
    assert row["gradient_norm"] > 0 and 1 <= row["effective_sample_size"] <= 3


def test_ramps() -> None:
    """Flat, linear, flat."""
    ramp = LinearSchedule(first=2.0, last=4.0, begin=0.25, end=0.75)
    assert [ramp.at(f) for f in (0, 0.25, 0.5, 0.75, 1)] == [2, 2, 3, 4, 4]
    assert LinearSchedule(1.0, 1.0).at(0.3) == 1


@pytest.mark.parametrize(
    ("scene", "name"),
    [
        *[("voxel_grid", name) for name in ("sparsity", "opacity", "orientation", "total_variation")],
        *[("gaussians", name) for name in ("sparsity", "opacity")],
        *[("gaussians", name) for name in ("gaussian_opacity", "gaussian_scale", "gaussian_position")],
    ],
)
def test_every_regulariser_reaches_the_gradient(teacher: ExactTeacher, scene: str, name: str) -> None:
    """A weight in the config changes the step; zero leaves it alone."""
    found = []
    for weight in (0.0, 50.0):
        config = small()
        if scene == "gaussians":
            config.scene = GaussiansConfig(count=150, spread=0.7)
        setattr(config.regularisers, name, LinearSchedule(weight, weight))
        trainer = Trainer(config, teacher)
        for _ in range(2):
            trainer.step()
        found.append(parameters(trainer))
    assert not torch.equal(*found)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_learns_on_cuda() -> None:
    """The same loop on a GPU."""
    config = small(30, resamples=4)
    config.device = "cuda"
    trainer = Trainer(config)
    logs = [trainer.step() for _ in range(30)]
    assert all(row["gradient_norm"] > 0 for row in fetch(logs))
