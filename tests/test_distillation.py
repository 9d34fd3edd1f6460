"""Distillation: the direction it descends, that it resumes and stops as promised, and the folder that it leaves."""

from __future__ import annotations

import errno
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from carv3d.cameras import Cameras
from carv3d.config import DistillConfig, load
from carv3d.distillation import DistillationRun, Distiller, DivergenceError, OneStep, load_distiller
from carv3d.distillation.conditions import Conditions, prompts_of
from carv3d.distillation.trainer import DivergenceWatch
from carv3d.errors import UserError
from carv3d.estimator import Residual
from carv3d.guidance import guidance_of
from carv3d.loss import Carv
from carv3d.objectives import Draw
from carv3d.objectives.distribution_matching import DistributionMatching
from carv3d.objectives.fake_score import FakeScore
from carv3d.runs import disk_errors, read_metrics
from carv3d.sampling import proposal, uniform_pmf
from carv3d.teachers import DiffusersTeacher
from carv3d.teachers.config import DiffusersTeacherConfig
from carv3d.teachers.denoiser import Denoiser
from tests.estimates import averaged, sds
from tests.pipelines import make_pipeline, make_sdxl
from tests.test_cli import carv3d

TINY = [
    "matching.renders=2",
    "matching.resamples=2",
    "fake.updates=1",
    "fake.batch=2",
    "training.steps=4",
    "training.preview_every=2",
    "training.checkpoint_every=2",
    "threads=1",
    "teacher.camera=auto",
    "teacher.view_words=true",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion that takes cameras, and two prompts."""
    path = make_pipeline(tmp_path_factory.mktemp("teacher") / "sd", camera=True, prediction="v_prediction")
    (path / "prompts.txt").write_text("# two\na red cone\n\na blue cube\n")
    return path


def words(folder: Path, *more: str) -> list[str]:
    return [f"teacher.path={folder}", f"prompts={folder / 'prompts.txt'}", *TINY, *more]


def config(folder: Path, *more: str) -> DistillConfig:
    return load(None, words(folder, *more), of=DistillConfig)


def score_difference(teacher: Any, fake: Any, condition: Any, scale: float) -> Residual:
    """What the objective averages, as the estimator asks for it."""
    objective = DistributionMatching(fake)

    @torch.no_grad()
    def residual(z: Tensor, t: Tensor, eps: Tensor, r: Tensor) -> Tensor:
        return objective.residual(Draw(teacher, guidance_of(scale), z, t, eps, condition[r]))

    return residual


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    path = tmp_path_factory.mktemp("runs") / "run"
    code, _, _ = carv3d("distill", *words(folder), "--output", str(path))
    assert code == 0
    return path


def parts(folder: Path, count: int = 3) -> tuple[DiffusersTeacher, Denoiser, object, Tensor]:
    """A teacher, a fake score that is not the teacher, conditions and latents of some outputs."""
    teacher = DiffusersTeacher(DiffusersTeacherConfig(path=str(folder)))
    fake = teacher.trainable(rank=0, seed=0)
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in fake.network.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=rng))
    cameras = Cameras.look_at_origin(torch.linspace(-90, 90, count), torch.linspace(0, 40, count))
    condition = Conditions(teacher, ["a red cone", "a blue cube"])(torch.arange(count) % 2, cameras)
    return teacher, fake, condition, torch.randn(count, *teacher.latent_shape, generator=rng)


def test_the_direction_is_that_of_dmd(folder: Path) -> None:
    """(mu_fake - mu_real) / mean |z - mu_real| of DMD's algorithm 2, written out in denoised pictures."""
    teacher, fake, condition, z = parts(folder)
    rng = torch.Generator().manual_seed(0)
    t, eps = torch.tensor([30, 500, 960]), torch.randn(z.shape, generator=rng)
    rows = torch.arange(3)
    found = score_difference(teacher, fake, condition, 2.5)(z, t, eps, rows)
    alpha, sigma = teacher.schedule.at(t, z)
    z_t = alpha * z + sigma * eps
    real = sds(teacher, z, t, eps, condition, 2.5) + eps
    mu_real = (z_t - sigma * real) / alpha
    mu_fake = (z_t - sigma * fake.eps_hat(z_t, t, condition)) / alpha
    size = (z - mu_real).abs().mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(found, ((mu_fake - mu_real) / size).detach(), rtol=2e-3, atol=2e-4)


def test_a_fake_score_that_equals_the_teacher_leaves_nothing_to_learn(folder: Path) -> None:
    """Without guidance the difference is zero when both networks are the same, for every draw."""
    teacher, _, condition, z = parts(folder)
    p = uniform_pmf(1000, 20, 980)
    q, w = proposal(p, p, "uniform"), torch.ones(1000, dtype=torch.float64)
    same = score_difference(teacher, teacher.trainable(rank=0, seed=0), condition, 1.0)
    assert averaged(z, same, q, w, 4, torch.Generator().manual_seed(0)).fbar.abs().max() < 1e-5


def test_descending_goes_towards_the_teacher() -> None:
    """Two Gaussians with known scores: outputs that follow the averaged difference take on the teacher's mean."""
    a, s = torch.tensor(0.8), torch.tensor(0.6)

    class Known:
        """eps_hat of N(mean, 1) at one noise level, where alpha^2 + sigma^2 = 1: sigma (z_t - alpha mean)."""

        def __init__(self, mean: float) -> None:
            self.mean, self.schedule = mean, self

        def at(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
            return a, s

        def eps_hat(self, z_t: Tensor, t: Tensor, told: object) -> Tensor:
            return s * (z_t - a * self.mean)

        def predict(self, z_t: Tensor, t: Tensor, told: object, branches: object) -> dict[str, Tensor]:
            return {"cond": self.eps_hat(z_t, t, told)}

    teacher, rng = Known(1.5), torch.Generator().manual_seed(0)
    p = uniform_pmf(10, 0, 9)
    q, w = proposal(p, p, "uniform"), torch.ones(10, dtype=torch.float64)
    z = torch.randn(512, 4, generator=rng)
    for _ in range(60):
        fake = Known(float(z.mean()))
        difference = score_difference(teacher, fake, torch.zeros(512), 1.0)  # type: ignore[arg-type]
        z = z - 0.3 * averaged(z, difference, q, w, 2, rng).fbar
    standard_error = 1 / math.sqrt(512 * 4)
    assert abs(float(z.mean()) - 1.5) < 4 * standard_error + 0.02


@pytest.mark.parametrize("kind, coupling", [("render", "independent"), ("render", "antithetic")])
def test_every_way_to_draw_has_the_same_mean(folder: Path, kind: str, coupling: str) -> None:
    """Strata and antithetic noise change the noise of the averaged difference, not what it is of: |z| < 4."""
    teacher, fake, condition, z = parts(folder, 1)
    p = uniform_pmf(1000, 20, 980)
    q, w = proposal(p, p, "uniform"), torch.ones(1000, dtype=torch.float64)
    probe = torch.randn(z.shape[1:], generator=torch.Generator().manual_seed(1))
    means, errors = [], []
    rows = torch.zeros(128, dtype=torch.long)
    for seed, (k, c) in enumerate([("none", "independent"), (kind, coupling)]):
        difference = score_difference(teacher, fake, condition[rows], 2.0)  # type: ignore[index]
        rng = torch.Generator().manual_seed(seed)
        fbar = averaged(z[rows], difference, q, w, 4, rng, strata=k, coupling=c).fbar  # type: ignore[arg-type]
        values = (fbar * probe).sum((1, 2, 3)).double()
        means.append(float(values.mean()))
        errors.append(float(values.std()) / math.sqrt(len(values)))
    assert abs(means[0] - means[1]) / math.hypot(*errors) < 4


def test_conditions_of_a_batch_are_those_of_each_alone(folder: Path) -> None:
    """Prompt, view words and camera of row n are what the teacher itself would be told of it; guidance too."""
    teacher, _, condition, z = parts(folder)
    t, eps = torch.tensor([100, 400, 900]), torch.zeros_like(z)
    together = sds(teacher, z, t, eps, condition, 3.0)  # type: ignore[arg-type]
    for n, prompt in enumerate(["a red cone", "a blue cube", "a red cone"]):
        camera = Cameras.look_at_origin(torch.linspace(-90, 90, 3)[n : n + 1], torch.linspace(0, 40, 3)[n : n + 1])
        one = slice(n, n + 1)
        alone = sds(teacher, z[one], t[one], eps[one], teacher.condition(prompt, camera), 3.0)
        torch.testing.assert_close(together[one], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_fake_score_learns_by_the_ordinary_loss(tmp_path: Path, prediction: str) -> None:
    """The loss of a network that knows the answer is zero, in whatever it predicts; else it is not."""
    teacher = DiffusersTeacher(DiffusersTeacherConfig(path=str(make_pipeline(tmp_path / "sd", prediction=prediction))))
    fake = teacher.trainable(rank=0, seed=0)
    z = torch.randn(4, *teacher.latent_shape, generator=torch.Generator().manual_seed(0))
    score = FakeScore(fake, 1e-3, [0.9, 0.999])
    condition = Conditions(teacher, ["a"])(
        torch.zeros(4, dtype=torch.long), Cameras.look_at_origin(torch.zeros(4), torch.zeros(4))
    )
    assert score.loss(z, condition, torch.Generator().manual_seed(0)) > 0.1

    def knows(z_t: Tensor, t: Tensor, told: object) -> Tensor:
        alpha, sigma = fake.schedule.at(t, z)
        eps = (z_t - alpha * z) / sigma
        return eps if prediction == "epsilon" else alpha * eps - sigma * z

    fake.predict = knows  # type: ignore[method-assign, assignment]
    # Where sigma is small the noise is found again to fewer digits.
    assert score.loss(z, condition, torch.Generator().manual_seed(0)) < 1e-6


def test_plain_dmd2_is_one_resample_of_the_estimator(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step averages by `Carv` and nothing else, with the config's K, strata and coupling."""
    seen: list[tuple[int, str, str]] = []
    estimate = Carv.estimate

    def spy(self: Carv, *args: Any, **options: Any) -> Any:
        seen.append((self.resamples, self.strata, self.coupling))
        return estimate(self, *args, **options)

    monkeypatch.setattr(Carv, "estimate", spy)
    Distiller(config(folder, "matching.resamples=1", "matching.strata=none")).step()
    Distiller(config(folder, "matching.resamples=4", "matching.coupling=antithetic")).step()
    assert seen == [(1, "none", "independent"), (4, "render", "antithetic")]


def test_a_run_leaves_what_it_promises(run: Path) -> None:
    """Checkpoints without pickles, pictures on the way, metrics, and a pipeline that says that it is one-step."""
    names = {p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file()}
    assert {"samples.png", "previews/step_000002.png", "pipeline/one_step.json", "pipeline/model_index.json"} <= names
    assert "checkpoints/step_000004/generator.safetensors" in names
    assert not [n for n in names if n.endswith((".bin", ".pt", ".part")) or "tmp" in n]
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4] and rows[-1]["fake_loss"] > 0
    card = json.loads((run / "pipeline" / "one_step.json").read_text())
    assert card["one_step"] and card["timestep"] == 999 and card["camera"]


def test_killed_and_resumed_it_comes_out_the_same(run: Path, folder: Path, tmp_path: Path) -> None:
    """From the checkpoint of half the steps the generator, bit for bit, and the metrics are those of the whole run."""
    half = tmp_path / "half"
    code, _, _ = carv3d("distill", *words(folder, "training.steps=2"), "--output", str(half))
    assert code == 0
    assert carv3d("distill", "--resume", str(half), "training.steps=4")[0] == 0
    with DistillationRun.open(run) as one, DistillationRun.open(half) as two:
        a, b = one.load_checkpoint(), two.load_checkpoint()
    assert a.step == b.step == 4
    for first, second in ((a.trained, b.trained), (a.state, b.state)):
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)
    losses = [[row["fake_loss"] for row in read_metrics(path / "metrics.jsonl")] for path in (run, half)]
    assert losses[0] == losses[1]


def test_the_pipeline_makes_what_the_run_would(run: Path, folder: Path) -> None:
    """The folder's generator and the checkpoint's average give the same latents for the same noise; one call each."""
    with DistillationRun.open(run) as opened:
        distiller = load_distiller(opened)
    generator = OneStep(run)
    cameras = Cameras.look_at_origin(torch.tensor([0.0, 120.0]), torch.tensor([10.0, 40.0]))
    calls: list[int] = []
    generator._network.network.register_forward_hook(lambda *_: calls.append(1))
    prompts = distiller.conditions.prompts
    found = generator.latents(prompts, cameras, torch.Generator().manual_seed(7))
    torch.testing.assert_close(found, distiller.sample([0, 1], cameras, torch.Generator().manual_seed(7)))
    assert len(calls) == 1
    assert StableDiffusionPipeline.from_pretrained(run / "pipeline", safety_checker=None).unet is not None


def test_pictures_from_the_command_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A prompt a row, cameras and noises beside each other."""
    picture = tmp_path / "x.png"
    options = ["--cameras", "0/10,90/10", "--count", "2", "--output", str(picture), "--json"]
    code, out, _ = carv3d("sample", str(run), "a red cone", "a blue cube", *options, capsys=capsys)
    assert code == 0 and json.loads(out) == {
        "picture": str(picture),
        "prompts": ["a red cone", "a blue cube"],
        "columns": 4,
        "network_calls": 1,
    }
    assert picture.stat().st_size > 100


def test_a_verb_of_another_pipeline_says_whose_run_it_is(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not that its keys are unknown; and what the run was made with may be damaged."""
    code, _, err = carv3d("evaluate", str(run), capsys=capsys)
    assert code == 2 and "is a run of `carv3d distill`; give a folder that `carv3d generate` made" in err
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "environment.json").write_text("{")
    code, _, err = carv3d("distill", "--resume", str(copy), capsys=capsys)
    assert code == 2 and "environment.json is damaged" in err


def test_divergence_stops_the_run_and_keeps_the_checkpoint(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A rate that no network survives: one line with the step, code 2, and the last good checkpoint still loads."""
    path = tmp_path / "run"
    more = ["fake.lr=1e18", "training.steps=60", "training.preview_every=0", "training.checkpoint_every=1"]
    code, _, err = carv3d("distill", *words(folder, *more), "--output", str(path), capsys=capsys)
    assert code == 2 and "Traceback" not in err
    assert re.search(r"error: step \d+: .*the checkpoint of step \d+ is kept.*--resume", err), err
    assert not (path / "pipeline").exists()
    with DistillationRun.open(path) as run:
        assert all(torch.isfinite(tensor).all() for tensor in run.load_checkpoint().trained.values())


@given(st.floats(1.01, 100), st.floats(0.01, 10), st.integers(20, 60))
def test_a_loss_above_the_running_level_is_divergence(factor: float, level: float, count: int) -> None:
    """Exactly above `fake.divergence` times the level, and not before twenty updates have made one."""
    watch = DivergenceWatch(factor)
    watch.compare(1000 * factor * level)  # the first losses are compared with nothing
    watch.load_state_dict({"level": torch.tensor([count, level], dtype=torch.float64)})
    with pytest.raises(DivergenceError, match="times its running level"):
        watch.compare(level * factor * 1.001)
    watch.compare(level * factor * 0.999)
    with pytest.raises(DivergenceError, match="not finite"):
        watch.compare(math.nan)


MISTAKES = [
    (["distill", "nowhere"], "no config 'nowhere'"),
    (["distill", "a red chair"], "prompts=FILE"),
    (["distill", "matching.resample=2"], "did you mean"),
    (["distill", "matching.resamples=0"], "matching.resamples"),
    (["distill", "matching.t_min=0.9", "matching.t_max=0.5"], "matching.t_min"),
    (["distill", "generator.timestep=0"], "generator.timestep"),
    (["distill", "fake.divergence=1"], "fake.divergence"),
    (["distill", "generator.betas=[0.9]"], "generator.betas"),
    (["distill", "cameras.azimuth=[10, 0]"], "cameras.azimuth"),
    (["distill", "teacher.type=exact"], "teacher.type"),
    (["distill", "views.perp_neg=true"], "views.perp_neg"),
    (["distill", "cameras.order=sequence"], "cameras.order"),
    (["distill", "prompts=/nowhere.txt"], "no prompt file /nowhere.txt: it is not there"),
    (["distill", "--resume", "nowhere"], "no run nowhere"),
    (["sample", ".", "a red chair"], "is no distilled generator"),
    (["sample", ".", "a red chair", "--cameras", "10"], "azimuth/elevation"),
]


@pytest.mark.parametrize("line, message", MISTAKES, ids=lambda v: " ".join(v)[-40:] if isinstance(v, list) else "")
def test_mistakes_are_one_line_and_code_2(
    line: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nothing is written, no traceback is shown."""
    monkeypatch.chdir(tmp_path)
    code, _, err = carv3d(*line, capsys=capsys)
    assert code == 2, err
    assert message in err and err.count("\n") == 1 and "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_teachers_and_prompts_that_will_not_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another family, a word that the built-in teacher never saw: refused before a folder is made."""
    other = make_sdxl(tmp_path / "xl")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red elephant\n")
    capsys.readouterr()  # of making the pipeline
    for word, message in ((f"teacher.path={other}", "cannot be distilled"), (f"prompts={prompts}", "elephant")):
        code, _, err = carv3d("distill", word, *TINY, "--output", str(tmp_path / "run"), capsys=capsys)
        assert code == 2 and message in err and err.count("\n") == 1
        assert not (tmp_path / "run").exists()
    prompts.write_text("# nothing\n")
    with pytest.raises(UserError, match="no prompts"):
        prompts_of(str(prompts))


def test_damage_and_a_full_disk_are_one_line(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A flipped byte in every checkpoint; no room for the pipeline, of which no half is left."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    for path in copy.glob("checkpoints/step_*/generator.safetensors"):
        data = bytearray(path.read_bytes())
        data[-5] ^= 1
        path.write_bytes(data)
    code, _, err = carv3d("distill", "--resume", str(copy), capsys=capsys)
    assert code == 2 and "damaged" in err and "Traceback" not in err

    full = tmp_path / "full"
    shutil.copytree(run, full)
    shutil.rmtree(full / "pipeline")

    def no_room(path: Path, data: bytes) -> None:
        with disk_errors(path):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("carv3d.distillation.one_step.replace_file", no_room)
    code, _, err = carv3d("distill", "--resume", str(full), capsys=capsys)
    assert code == 2 and "the disk is full" in err
    assert not list(full.glob("*pipeline*"))
