"""`Carv` in other people's loops: its draws, its value, its state, and what it refuses."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from carv3d import Carv, registry
from carv3d.errors import UserError
from carv3d.loss import surrogate, timestep_range
from carv3d.objectives.sds import Sds
from carv3d.sampling import Draws, draw_at, proposal, sds_weight, uniform_pmf
from tests.pipelines import make_pipeline
from tests.two_branches import two_branches
from tests.two_points import TwoPointTeacher

SHAPE = (1, 2, 2)


@pytest.fixture(scope="module")
def teacher() -> TwoPointTeacher:
    g = torch.Generator().manual_seed(1)
    return TwoPointTeacher(*torch.randn((2, *SHAPE), generator=g, dtype=torch.float64))


def latents(count: int = 3) -> Tensor:
    g = torch.Generator().manual_seed(2)
    return torch.randn(count, *SHAPE, generator=g, dtype=torch.float64, requires_grad=True)


# ------------------------------------------------------------------------------------------ draws


@settings(max_examples=30)
@given(
    st.integers(0, 2**62),
    st.integers(0, 10**6),
    st.integers(1, 4),
    st.integers(1, 5),
    st.sampled_from(["none", "render", "global"]),
    st.sampled_from(["independent", "antithetic", "zero_sum"]),
)
def test_processes_that_share_a_step_draw_what_one_would(
    seed: int, step: int, renders: int, resamples: int, strata: Any, coupling: str
) -> None:
    """Whatever the split over renders: draws are a function of (seed, step, render)."""
    p = uniform_pmf(100, 2, 97)
    q = proposal(p, torch.linspace(0, 1, 100, dtype=torch.float64), "importance")

    def part(which: range) -> Draws:
        how: dict[str, Any] = {"strata": strata, "coupling": coupling, "of": renders}
        return draw_at(seed, step, which, resamples, (2, 3), q, torch.device("cpu"), **how)

    whole = part(range(renders))
    for r in range(renders):
        one = part(range(r, r + 1))
        assert torch.equal(one.t[0], whole.t[r]) and torch.equal(one.eps[0], whole.eps[r])
    ranks = [whole.resamples(slice(rank, None, 2)) for rank in range(2)]
    assert sum(rank.t.shape[1] for rank in ranks) == resamples


def test_different_steps_seeds_and_renders_draw_differently(teacher: TwoPointTeacher) -> None:
    carv, z = Carv(teacher, seed=5), latents(1)
    found = [
        Carv(teacher, seed=seed).draw(z, step=step, first=first).eps
        for seed, step, first in itertools.product((0, 1), (0, 1), (0, 1))
    ]
    for a, b in itertools.combinations(found, 2):
        assert not torch.equal(a, b)
    assert torch.equal(carv.draw(z).eps, Carv(teacher, seed=5).draw(z, step=0).eps)
    assert torch.equal(carv.draw(z).eps, Carv(teacher, seed=5).draw(z, step=1).eps)  # calls count the steps


def test_ranks_draw_for_their_own_renders(teacher: TwoPointTeacher, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under torch.distributed two ranks of two renders are one process of four: nobody repeats another's noise."""
    from carv3d import loss

    whole = Carv(teacher).draw(latents(4), step=3)
    for rank in (0, 1):
        monkeypatch.setattr(loss, "_rank", lambda rank=rank: (rank, 2))
        own = Carv(teacher).draw(latents(2), step=3)
        assert torch.equal(own.eps, whole.eps[2 * rank : 2 * rank + 2])


def test_draws_of_a_step_are_those_of_the_estimator(teacher: TwoPointTeacher) -> None:
    """Drawn by (seed, step, render) the estimate is as unbiased as from a generator: |z| < 4."""
    carv = Carv(teacher, resamples=3)
    z = latents(1).detach().expand(3000, *SHAPE)
    found = carv.estimate(z, teacher.rows(3000), step=1).fbar.flatten(1)
    w = sds_weight(teacher.schedule.alpha, teacher.schedule.sigma, "sds")
    exact = teacher.expectation(z[0], uniform_pmf(1000, 20, 980), w).flatten()
    assert ((found.mean(0) - exact) / (found.std(0) / 3000**0.5)).abs().max() < 4


def test_given_draws_are_used_and_returned(teacher: TwoPointTeacher) -> None:
    """And shares of the K draws average to the whole."""
    carv, z = Carv(teacher, resamples=4), latents()
    draws = carv.draw(z)
    whole = carv.estimate(z, teacher.rows(3), draws=draws)
    assert whole.draws is draws
    halves = [carv.estimate(z, teacher.rows(3), draws=draws.resamples(slice(k, None, 2))).fbar for k in (0, 1)]
    torch.testing.assert_close((halves[0] + halves[1]) / 2, whole.fbar)
    with pytest.raises(ValueError, match="do not fit latents"):
        carv.estimate(latents(2), teacher.rows(2), draws=draws)


# ------------------------------------------------------------------------------------------ the loss


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_value_and_gradient_of_the_surrogate(dtype: torch.dtype) -> None:
    """Value 1/2 |fbar|^2 / R, gradient fbar / R; in half precision too, where mse would lose small gradients."""
    g = torch.Generator().manual_seed(0)
    z = (10 * torch.randn(2, 3, generator=g)).to(dtype).requires_grad_()
    fbar = 1e-3 * torch.randn(2, 3, generator=g).double()
    loss = surrogate(z, fbar)
    loss.backward()
    assert z.grad is not None
    assert float(loss.detach()) == pytest.approx(
        float(fbar.square().sum()) / 4, rel=1e-6 if dtype == torch.float64 else 0.05
    )
    torch.testing.assert_close(z.grad.double(), fbar / 2, rtol=1e-2 if dtype == torch.float16 else 1e-9, atol=1e-8)


def test_clip_limits_every_number(teacher: TwoPointTeacher) -> None:
    z, plain = latents(), latents()
    clipped, found = Carv(teacher, clip=1e-3)(z, teacher.rows(3))
    clipped.backward()
    Carv(teacher)(plain, teacher.rows(3))[0].backward()
    assert z.grad is not None and plain.grad is not None
    torch.testing.assert_close(z.grad, found.fbar.clamp(-1e-3, 1e-3) / 3)
    assert plain.grad.abs().max() > 1e-3 / 3


def test_state_goes_on_with_the_same_draws(teacher: TwoPointTeacher) -> None:
    """Tensors by name, for safetensors; also after out-of-memory has halved the chunk."""
    first = Carv(teacher, seed=9, chunk=3)
    for _ in range(4):
        first(latents(), teacher.rows(3))
    state = first.state_dict()
    assert all(isinstance(value, Tensor) for value in state.values())
    second = Carv(teacher, seed=1)
    second.load_state_dict(state)
    assert second.chunk == 3
    a, b = (carv.estimate(latents(), teacher.rows(3)) for carv in (first, second))
    assert torch.equal(a.draws.eps, b.draws.eps) and torch.equal(a.fbar, b.fbar)


# ------------------------------------------------------------------------------------------ the range


def test_timesteps_or_fractions(teacher: TwoPointTeacher) -> None:
    """A fraction is rounded to a timestep; a whole number is one, so that any range can be had exactly."""
    assert timestep_range((0.02, 0.9788), 1000) == (20, 979)
    assert timestep_range((20, 978), 1000) == (20, 978)
    assert timestep_range((0.0, 1.0), 1000) == (0, 999) and timestep_range((0, 1), 1000) == (0, 1)
    carv = Carv(teacher, t_range=(30, 31))
    assert set(carv.draw(latents()).t.flatten().tolist()) <= {30, 31}
    carv.t_range = (0.5, 0.5)
    assert set(carv.draw(latents()).t.flatten().tolist()) == {500}


@pytest.mark.parametrize(
    "bad", [(0, 1000), (-1, 5), (9, 3), (0.5, 0.4), (0.0, 1.5), (0, 0.5), (True, False), (float("nan"), 1.0), (1, 2, 3)]
)
def test_ranges_that_are_none_are_refused(bad: Any, teacher: TwoPointTeacher) -> None:
    with pytest.raises(ValueError, match=r"t_range must be two fractions .* or two timesteps"):
        Carv(teacher, t_range=bad)


# ------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    "bad, error, message",
    [
        ({"coupling": "antithethic"}, UserError, "did you mean 'antithetic'"),
        ({"proposal": "importence"}, UserError, "did you mean 'importance'"),
        ({"objective": "sdss"}, UserError, "did you mean 'sds'"),
        ({"strata": "renders"}, ValueError, "did you mean 'render'"),
        ({"weighting": "sdss"}, ValueError, "did you mean 'sds'"),
        ({"resamples": 2.0}, ValueError, "resamples must be a whole number"),
        ({"resamples": True}, ValueError, "resamples must be a whole number"),
        ({"chunk": -1}, ValueError, "chunk must be a whole number"),
        ({"clip": 0.0}, ValueError, "clip must be a positive number"),
        ({"guidance": -2.0}, ValueError, "guidance scale"),
        ({"seed": -1}, ValueError, "seed must be"),
    ],
)
def test_bad_arguments_are_refused_at_construction(
    teacher: TwoPointTeacher, bad: dict[str, Any], error: type[Exception], message: str
) -> None:
    """Not at the first call, minutes later."""
    with pytest.raises(error, match=message) as caught:
        Carv(teacher, **bad)
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_a_call_is_one_line(teacher: TwoPointTeacher) -> None:
    """Detached latents, a condition of other renders, another device, a shape that is none."""
    carv = Carv(teacher)
    with pytest.raises(ValueError, match="no graph"):
        carv(latents().detach(), teacher.rows(3))
    with pytest.raises(ValueError, match="the condition has 1 rows and there are 3 renders"):
        carv(latents(), teacher.rows(1))
    with pytest.raises(ValueError, match=r"latents must be \(R, C, h, w\)"):
        carv(torch.zeros((), requires_grad=True), teacher.rows(1))

    class Elsewhere:
        """A model that says it is on another device."""

        branches = ("cond",)
        schedule = teacher.schedule.to("meta")
        predict = teacher.predict

    other = Carv.__new__(Carv)
    other.model = Elsewhere()  # type: ignore[assignment]
    with pytest.raises(ValueError, match="the latents are on cpu and the model on meta"):
        other.estimate(latents(), teacher.rows(3))


def test_what_is_no_score_model_is_refused(tmp_path: Any) -> None:
    """A pipeline's class says what to do with it."""
    from diffusers import StableDiffusionPipeline

    from carv3d.teachers import DiffusersTeacher

    pipe = StableDiffusionPipeline.from_pretrained(make_pipeline(tmp_path / "sd"), safety_checker=None)
    with pytest.raises(TypeError, match=r"carv3d\.from_pipeline\(pipe\)"):
        Carv(pipe)
    with pytest.raises(TypeError, match=r"carv3d\.from_pipeline\(pipe\)"):
        DiffusersTeacher(pipe)
    with pytest.raises(TypeError, match="has no schedule, branches, predict"):
        Carv(object())  # type: ignore[arg-type]


def test_a_model_without_an_unconditional_branch_is_not_guided(teacher: TwoPointTeacher) -> None:
    """By a scale; where there is one, the scale counts."""
    z = latents()
    one, two = (Carv(teacher, guidance=s).estimate(z, teacher.rows(3)).fbar for s in (1.0, 9.0))
    assert torch.equal(one, two)
    model, _ = two_branches()
    one, two = (Carv(model, guidance=s).estimate(z, model.rows(3)).fbar for s in (1.0, 9.0))
    assert not torch.allclose(one, two)


# ------------------------------------------------------------------------------------------ plug-ins and types


@pytest.mark.parametrize(
    "keys, said",
    [
        ({"guidance": True}, "guidance must be a number"),
        ({"guidance": "7.5"}, "guidance must be a number"),
        ({"guidance": None}, "guidance must be a number"),
        ({"objective": Sds}, "objective must be a name, or an object"),
        ({"objective": None}, "objective must be a name, or an object"),
    ],
    ids=str,
)
def test_arguments_of_another_type_are_named(teacher: TwoPointTeacher, keys: dict[str, Any], said: str) -> None:
    with pytest.raises(TypeError, match=said):
        Carv(teacher, **keys)


def test_numbers_of_numpy_are_numbers(teacher: TwoPointTeacher) -> None:
    last = len(teacher.schedule) - 1
    found = Carv(teacher, resamples=np.int64(3), seed=np.int64(2), guidance=np.float32(1), t_range=(np.int64(1), last))
    same = Carv(teacher, resamples=3, seed=2, guidance=1.0, t_range=(1, last))
    z = latents()
    assert torch.equal(found.draw(z, step=1).t, same.draw(z, step=1).t)


@pytest.fixture
def plug_ins() -> Iterator[None]:
    """Proposals and couplings that will not do."""
    added: dict[str, dict[str, Any]] = {
        "proposal": {
            "narrow": lambda p, w: torch.where(torch.arange(len(p)) < len(p) // 2, 0.0, p),
            "negative": lambda p, w: -p,
            "short": lambda p, w: p[1:],
            "nothing": lambda p, w: None,
        },
        "coupling": {"flat": lambda normals, K: normals(K).flatten(), "nothing": lambda normals, K: None},
    }
    for kind, components in added.items():
        for name, component in components.items():
            registry.register(kind, name, component)
    yield
    for kind, components in added.items():
        for name in components:
            del registry._added[kind][name]


@pytest.mark.parametrize(
    "keys, said",
    [
        ({"proposal": "narrow"}, "'narrow' is zero at timesteps where p w is not: the gradient would be biased"),
        ({"proposal": "negative"}, "'negative' cannot be used: a proposal must be finite, non-negative"),
        ({"proposal": "short"}, "'short' must give a tensor of"),
        ({"proposal": "nothing"}, "'nothing' must give a tensor of"),
        ({"coupling": "flat"}, r"'flat' must give a tensor \(R, K"),
        ({"coupling": "nothing"}, r"'nothing' must give a tensor \(R, K"),
    ],
    ids=str,
)
def test_plug_ins_that_would_be_wrong_are_refused_at_the_start(
    plug_ins: None, teacher: TwoPointTeacher, keys: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        Carv(teacher, **keys)


def test_a_half_precision_loss_has_a_finite_value() -> None:
    """Sums leave the range of float16; the gradient is that of float32."""
    z = torch.full((2, 4, 64, 64), 30.0, dtype=torch.float16, requires_grad=True)
    fbar = torch.full_like(z, 8.0, dtype=torch.float32)
    loss = surrogate(z, fbar)
    loss.backward()
    assert float(loss) == fbar.square().sum() / 4 and float(loss) > 65504
    assert z.grad is not None and torch.equal(z.grad, torch.full_like(z, 4.0))
