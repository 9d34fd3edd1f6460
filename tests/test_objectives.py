"""Objectives: each against a formula of its own, its expectation, what it refuses, and that every verb uses it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from carv3d import Carv, registry
from carv3d.accounting import BASELINE, Method, VarianceMeter, measure, methods
from carv3d.accounting.methods import Measurement
from carv3d.cameras import Cameras
from carv3d.comparison.calibration import step_costs
from carv3d.config import load
from carv3d.guidance import ClassifierFree, PerpNeg, Unguided, guidance_of
from carv3d.objectives import Draw, Objective
from carv3d.objectives.csd import Csd
from carv3d.objectives.sds import Sds
from carv3d.objectives.vsd import Vsd
from carv3d.sampling import sds_weight, uniform_pmf
from carv3d.teachers import DiffusersTeacher, ExactTeacher
from carv3d.teachers.config import DiffusersTeacherConfig, ExactTeacherConfig
from carv3d.training.automatic_resamples import AutomaticResamples
from carv3d.training.trainer import Trainer
from tests.pipelines import make_deepfloyd, make_pipeline, make_sd3, make_sdxl
from tests.test_cli import carv3d
from tests.test_training import small
from tests.two_branches import two_branches

CAMERAS = Cameras.look_at_origin(torch.tensor([0.0, 90.0, 180.0]), torch.tensor([0.0, 30.0, 10.0]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion with v-prediction that is told the camera."""
    return make_pipeline(tmp_path_factory.mktemp("teacher") / "sd", camera=True, prediction="v_prediction")


@pytest.fixture(scope="module")
def teacher(folder: Path) -> DiffusersTeacher:
    return DiffusersTeacher(DiffusersTeacherConfig(path=str(folder), cache_text=False))


def drawn(teacher: DiffusersTeacher, scale: float, *, count: int = 3) -> Draw:
    g = torch.Generator().manual_seed(0)
    z, eps = torch.randn(2, count, *teacher.latent_shape, generator=g)
    condition = teacher.condition("a", CAMERAS[:count])
    return Draw(teacher, guidance_of(scale), z, torch.tensor([20, 400, 900])[:count], eps, condition)


def eps_of(teacher: DiffusersTeacher, draw: Draw, words: Tensor, camera: Tensor | None) -> np.ndarray:
    """The network's noise in float64, from its velocity by v = alpha eps - sigma z, with numpy alone."""
    beta = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alpha = np.sqrt(np.cumprod(1 - beta))[draw.t.numpy()][:, None, None, None]
    sigma = np.sqrt(1 - alpha**2)
    z_t = alpha * draw.z.double().numpy() + sigma * draw.eps.double().numpy()
    camera = torch.zeros(len(draw.t), 4) if camera is None else camera
    with torch.no_grad():
        v = teacher.family.network(torch.from_numpy(z_t).float(), draw.t, words, class_labels=camera).sample
    return alpha * v.double().numpy() + sigma * z_t


@pytest.mark.parametrize("objective", [Sds(), Csd(), Vsd(rank=0)], ids=lambda o: type(o).__name__)
def test_residuals_by_an_independent_formula(teacher: DiffusersTeacher, objective: Objective) -> None:
    """SDS, CSD and VSD from the network's own output, in float64: the equations of their papers."""
    draw, s = drawn(teacher, 2.5), 2.5
    condition = draw.condition
    cond = eps_of(teacher, draw, condition.mixed(condition.cond)["text"], condition.camera)
    uncond = eps_of(teacher, draw, condition.mixed(condition.uncond)["text"], None)
    guided, eps = uncond + s * (cond - uncond), draw.eps.double().numpy()
    objective = dataclasses.replace(objective)
    objective.prepare(teacher, draw.guidance, 0)
    expected = {"Sds": guided - eps, "Csd": (s - 1) * (cond - uncond), "Vsd": guided - cond}[type(objective).__name__]
    with torch.no_grad():  # an untrained fake score is the teacher's conditional one
        np.testing.assert_allclose(objective.residual(draw).numpy(), expected, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("objective", ["sds", "csd"])
@pytest.mark.parametrize("proposal, strata", [("uniform", "none"), ("importance", "render")])
@pytest.mark.parametrize("resamples, noise", [(1, "independent"), (4, "antithetic"), (5, "zero_sum")])
def test_unbiased(objective: str, proposal: str, strata: Any, resamples: int, noise: str) -> None:
    """The mean of 3,000 estimates meets the integral of the objective's own residual in every coordinate: |z| < 4."""
    model, z = two_branches()
    s, count = 4.0, 3000
    carv = Carv(
        model,
        objective=objective,
        guidance=s,
        proposal=proposal,
        strata=strata,
        resamples=resamples,
        coupling=noise,
    )
    rng = torch.Generator().manual_seed(resamples)
    found = carv.estimate(z.expand(count, 1, 2, 2), model.rows(count), rng).fbar.flatten(1)
    p, w = uniform_pmf(1000, 20, 980), sds_weight(model.schedule.alpha, model.schedule.sigma, "sds")
    cond, uncond = (model.expected_eps(z, p, w, branch) for branch in ("cond", "uncond"))
    exact = {"sds": uncond + s * (cond - uncond), "csd": (s - 1) * (cond - uncond)}[objective].flatten()
    scores = (found - exact).mean(0) / (found.std(0) / count**0.5)
    assert (scores.abs() < 4).all(), scores


def test_guidance_is_the_same_for_any_batch(teacher: DiffusersTeacher) -> None:
    """Scale 1 is the conditional prediction and asks for nothing else; the scale of a row does not mix rows."""
    assert guidance_of(1.0) == Unguided() and guidance_of(3.0) == ClassifierFree(3.0)
    assert guidance_of(1.0, perp_neg=True) == PerpNeg(1.0)
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="guidance scale"):
            guidance_of(bad)
    together = drawn(teacher, 3.0)
    with torch.no_grad():
        whole = together.guided(together.predict())
        for n in range(3):
            row = torch.tensor([n])
            one = dataclasses.replace(
                together,
                z=together.z[row],
                t=together.t[row],
                eps=together.eps[row],
                condition=together.condition[row],
            )
            torch.testing.assert_close(one.guided(one.predict())[0], whole[n], rtol=1e-4, atol=1e-5)


class TestVsd:
    def test_an_untrained_fake_score_at_scale_one_leaves_nothing(self, teacher: DiffusersTeacher) -> None:
        """Whatever the rank: the additions start at zero, and the copy is exact."""
        for rank in (0, 4):
            objective = Vsd(rank=rank)
            objective.prepare(teacher, Unguided(), 0)
            with torch.no_grad():
                assert objective.residual(drawn(teacher, 1.0)).abs().max() < 1e-5

    @pytest.mark.parametrize("rank", [0, 4])
    def test_steps_that_are_only_timed_teach_it_nothing(self, folder: Path, rank: int) -> None:
        """Neither its weights nor its optimiser's moments, of which there are none at the start."""
        teacher = DiffusersTeacher(DiffusersTeacherConfig(path=str(folder), cache_text=False))
        carv = Carv(teacher, objective=Vsd(rank=rank), guidance=3.0)
        z, condition = torch.randn(1, *teacher.latent_shape), teacher.condition("a", CAMERAS[:1])
        for step in range(2):  # before and after its first update
            before = {name: tensor.clone() for name, tensor in carv.objective.state_dict().items()}
            with carv.kept():
                carv.update(z, condition, torch.Generator().manual_seed(step))
            after = {name: tensor.clone() for name, tensor in carv.objective.state_dict().items()}
            assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
            carv.update(z, condition, torch.Generator().manual_seed(step))
            assert any(not torch.equal(after.get(k, v), v) for k, v in carv.objective.state_dict().items())

    @pytest.mark.parametrize("rank", [0, 4])
    def test_the_fake_score_learns_the_renders_and_the_teacher_stays(self, folder: Path, rank: int) -> None:
        """Its loss on one kind of picture falls; the teacher's weights are bit for bit what they were."""
        teacher = DiffusersTeacher(DiffusersTeacherConfig(path=str(folder), cache_text=False))
        before = {k: v.clone() for k, v in teacher.family.network.state_dict().items()}
        objective = Vsd(rank=rank, lr=3e-2 if rank else 3e-3, draws=8)
        objective.prepare(teacher, guidance_of(3.0), 0)
        z = torch.full((1, *teacher.latent_shape), 0.7)
        condition = teacher.condition("a", CAMERAS[:1])

        def loss() -> float:
            with torch.no_grad():
                rows = torch.zeros(256, dtype=torch.long)
                return float(objective._fake.loss(z[rows], condition[rows], torch.Generator().manual_seed(9)))

        first, rng = loss(), torch.Generator().manual_seed(0)
        for _ in range(60):
            figures = objective.update(z, condition, rng)
        assert loss() < 0.9 * first and figures["fake_loss"].isfinite()
        after = teacher.family.network.state_dict()
        assert all(torch.equal(before[k], after[k]) for k in before)
        assert not any(p.requires_grad for p in teacher.family.network.parameters())

    def test_it_is_told_the_camera(self, teacher: DiffusersTeacher) -> None:
        """A fake score trained on one view answers otherwise from another."""
        objective = Vsd(rank=4, lr=3e-2)
        objective.prepare(teacher, guidance_of(3.0), 0)
        z = torch.full((1, *teacher.latent_shape), 0.7)
        for _ in range(20):
            objective.update(z, teacher.condition("a", CAMERAS[:1]), torch.Generator().manual_seed(0))
        draw = drawn(teacher, 3.0)
        one = draw.condition[torch.tensor([0, 0, 0])]
        other = dataclasses.replace(one, camera=draw.condition.camera)
        with torch.no_grad():
            a, b = (objective._fake.eps_hat(draw.z_t, draw.t, c) for c in (one, other))
        assert not torch.allclose(a, b, rtol=1e-3)

    @pytest.mark.parametrize("make", [make_pipeline, make_sdxl, make_sd3, make_deepfloyd], ids=lambda f: f.__name__)
    def test_every_family_can_have_one(self, make: Callable[[Path], Path], tmp_path: Path) -> None:
        """Low-rank additions fit any pipeline's attention; a step changes them and them alone."""
        teacher = DiffusersTeacher(DiffusersTeacherConfig(path=str(make(tmp_path / "t")), cache_text=False))
        carv = Carv(teacher, objective="vsd", resamples=2)
        z = torch.randn(2, *teacher.latent_shape, generator=torch.Generator().manual_seed(0), requires_grad=True)
        condition = teacher.condition("a", CAMERAS[:2])
        before = {k: v.clone() for k, v in carv.objective.state_dict().items()}
        loss, _ = carv(z, condition)
        loss.backward()
        carv.update(z, condition)
        after = carv.objective.state_dict()
        assert z.grad is not None and z.grad.isfinite().all()
        assert any(not torch.equal(before[k], after[k]) for k in before)

    def test_a_run_goes_on_with_the_same_numbers(self, folder: Path) -> None:
        """The fake score and its optimiser are part of a checkpoint."""
        config = small(resamples=2, objective=registry.find("objective", "vsd")(rank=2))
        config.teacher = load(None, [f"teacher.path={folder}"]).teacher
        whole = Trainer(config)
        for _ in range(3):
            whole.step()
        scene, state = ({k: v.clone() for k, v in part.items()} for part in whole.state())
        assert any(name.startswith("objective.adam") for name in state)
        resumed = Trainer(config)
        resumed.load_state(3, scene, state)
        for trainer in (whole, resumed):
            for _ in range(2):
                log = trainer.step()
            assert "fake_loss" in log.figures
        for a, b in zip(whole.scene.parameters(), resumed.scene.parameters(), strict=True):
            assert torch.equal(a, b)


def test_a_checkpoint_of_another_objective_is_refused(folder: Path) -> None:
    """Not taken as if nothing were missing."""
    teacher = DiffusersTeacher(DiffusersTeacherConfig(path=str(folder), cache_text=False))
    vsd, sds = (Carv(teacher, objective=name) for name in ("vsd", "sds"))
    with pytest.raises(ValueError, match="has no state"):
        sds.load_state_dict(vsd.state_dict())
    with pytest.raises((KeyError, RuntimeError, ValueError)):
        vsd.load_state_dict(sds.state_dict())


@pytest.mark.parametrize(
    "words, message",
    [
        (["guidance.objective=sdss"], "did you mean 'sds'"),
        (["guidance.objective=csd", "guidance.scale=1"], "zero at guidance scale 1"),
        (["guidance.objective=csd", "teacher.type=exact"], "unconditional prediction"),
        (["guidance.objective=vsd", "teacher.type=exact"], "this teacher has none"),
        (["guidance.objective=vsd", "guidance.objective.rank=-1"], "guidance.objective.rank must be at least 0"),
        (["guidance.objective=vsd", "guidance.objective.lr=nan"], "guidance.objective.lr"),
        (["guidance.objective=csd", "guidance.objective.rank=2"], "is of guidance.objective.type=vsd"),
        (["guidance.objective=vsd", "guidance.objective.rnk=2"], "did you mean 'guidance.objective.rank'"),
        (["guidance.objective=nowhere.Thing"], "cannot be imported: ModuleNotFoundError"),
        (["guidance.objective=json.dumps"], "is no dataclass"),
    ],
)
def test_objectives_that_cannot_be_served_are_one_line(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit code 2 before anything is written."""
    monkeypatch.chdir(tmp_path)
    code, _, err = carv3d("generate", "a red cone", *words, capsys=capsys)
    assert code == 2 and message in err and err.count("\n") == 1 and "Traceback" not in err, err
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------- every verb uses the objective


def upstream_of(model: Any, z: Tensor) -> tuple[Tensor, Callable[[torch.Generator], tuple[Tensor, Any]]]:
    """z = theta + the render's own part, and a condition."""
    theta = torch.zeros(1, *z.shape, dtype=z.dtype, requires_grad=True)

    def upstream(rng: torch.Generator) -> tuple[Tensor, Any]:
        return z + theta + 0.3 * torch.randn(1, *z.shape, generator=rng, dtype=z.dtype), model.rows(1)

    return theta, upstream


def measured(objective: str, tried: list[Method], renders: int = 200, scale: float = 4.0) -> Measurement:
    model, z = two_branches()
    theta, upstream = upstream_of(model, z)
    carv = Carv(model, objective=objective, guidance=scale)
    rng = torch.Generator().manual_seed(0)
    return measure(carv, upstream, [theta], tried, rng, budget=300, most_renders=renders)


def test_csd_is_measured_as_csd_whatever_measures_one_draw() -> None:
    """The variance of one draw by `measure`, by replicates of K = 1, and K times that of K independent draws agree."""
    scale = 1.5  # at which the two objectives have very different noise
    found = measured("csd", methods([1, 2]), scale=scale)
    assert max(found.z().values()) < 4
    model, z = two_branches()
    _, upstream = upstream_of(model, z)
    carv = Carv(model, objective="csd", guidance=scale, resamples=1, proposal="uniform", strata="none")
    two = carv.replace(resamples=2, proposal="uniform", strata="none", coupling="independent")
    rng = torch.Generator().manual_seed(1)
    meters = {1: VarianceMeter(), 2: VarianceMeter()}
    for _ in range(400):
        latents, condition = upstream(rng)
        rows = torch.zeros(2, dtype=torch.long)
        for K, one in ((1, carv), (2, two)):
            meters[K].add(one.estimate(latents[rows], condition[rows], rng).fbar.flatten(1))
    by_measure = float(found.within_samples(BASELINE).mean())
    assert by_measure == pytest.approx(meters[1].within.value, rel=0.2)
    assert by_measure == pytest.approx(2 * meters[2].within.value, rel=0.2)
    assert by_measure < 0.5 * float(measured("sds", [BASELINE], scale=scale).within_samples(BASELINE).mean())


@dataclass
class Thrice(Sds):
    """Three times the residual of SDS, and a count of its calls."""

    calls = 0

    def residual(self, draw: Draw) -> Tensor:
        Thrice.calls += 1
        return 3 * super().residual(draw)


@pytest.fixture
def thrice(monkeypatch: pytest.MonkeyPatch) -> None:
    """One objective, added in one place."""
    monkeypatch.setitem(registry._added["objective"], "thrice", Thrice)
    Thrice.calls = 0


def test_an_added_objective_is_seen_by_measure(thrice: None) -> None:
    """Every part of the variance is nine times that of SDS, for every method."""
    tried = methods([1, 2])
    plain, large = measured("sds", tried, 30), measured("thrice", tried, 30)
    np.testing.assert_allclose(large.between_samples(), 9 * plain.between_samples(), rtol=1e-3)
    for method in tried:
        np.testing.assert_allclose(large.within_samples(method), 9 * plain.within_samples(method), rtol=1e-3)


def test_an_added_objective_is_seen_by_auto_and_compare(thrice: None) -> None:
    """The probes of `auto` find nine times the variance; a comparison's trial runs call it."""
    parts = []
    for name in ("sds", "thrice"):
        config = load(None, [f"guidance.objective={name}", "teacher.type=exact", "teacher.views=40"])
        base = small(resamples="auto")
        base.guidance.objective = config.guidance.objective
        trainer = Trainer(base, ExactTeacher(ExactTeacherConfig(views=40, neighbours=8)))
        (hook,) = trainer.hooks
        assert isinstance(hook, AutomaticResamples)
        hook.allocation.cost_ratio = 4.0  # measured by time otherwise
        trainer.step()
        parts.append(hook.allocation.size)
    assert parts[1] == pytest.approx(9 * parts[0], rel=1e-3)
    Thrice.calls = 0
    config = small(steps=6)
    config.guidance.objective = load(None, ["guidance.objective=thrice"]).guidance.objective
    [cost] = step_costs([config], "a red cone", torch.device("cpu"), 1)
    assert Thrice.calls == 6 and cost.calls == config.guidance.resamples


def test_guidance_of_perp_neg_needs_negatives() -> None:
    """A guidance that the model cannot serve is refused at construction."""
    model, _ = two_branches()
    with pytest.raises(ValueError, match="'negatives'"):
        Carv(model, guidance=PerpNeg(3.0))
