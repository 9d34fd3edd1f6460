"""Algorithm 1 against exact expectations."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from carv3d import Carv
from carv3d.estimator import Estimate
from carv3d.sampling import Draws, proposal, sds_weight, uniform_pmf
from tests.estimates import averaged, sds
from tests.two_points import TwoPointTeacher

SHAPE = (1, 2, 2)
PROPOSALS, STRATA = ("uniform", "importance"), ("none", "render", "global")


@pytest.fixture(scope="module")
def teacher() -> TwoPointTeacher:
    g = torch.Generator().manual_seed(1)
    first, second = torch.randn((2, *SHAPE), generator=g, dtype=torch.float64)
    return TwoPointTeacher(first, second)


@pytest.fixture(scope="module")
def z() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.fixture(scope="module")
def exact(teacher: TwoPointTeacher, z: Tensor) -> Tensor:
    """The integral that every estimate is of: E over p(t) and eps of w(t) r, flat."""
    p, w = uniform_pmf(1000, 20, 980), sds_weight(teacher.schedule.alpha, teacher.schedule.sigma, "sds")
    return teacher.expectation(z, p, w).flatten()


def replicates(
    teacher: TwoPointTeacher, z: Tensor, count: int, renders: int = 4, *, seed: int = 0, **options: Any
) -> Tensor:
    """`count` independent step estimates (the mean over the renders), each flattened: (count, numel)."""
    carv = Carv(teacher, **options)
    rng = torch.Generator().manual_seed(seed)
    rows, condition = z.expand(renders * count, *SHAPE), teacher.rows(renders * count)
    draws = None
    if options["strata"] == "global":  # strata run over the renders of one step, which is drawn by itself
        steps = [carv.draw(rows[:renders], rng) for _ in range(count)]
        draws = Draws(torch.cat([step.t for step in steps]), torch.cat([step.eps for step in steps]))
    return carv.estimate(rows, condition, rng, draws=draws).fbar.view(count, renders, -1).mean(1)


@pytest.mark.parametrize(
    "kind, strata, K, noise",
    [
        *itertools.product(PROPOSALS, STRATA, (1, 4), ("independent",)),
        *itertools.product(PROPOSALS, STRATA, (2, 5), ("antithetic", "zero_sum")),
    ],
)
def test_unbiased(
    teacher: TwoPointTeacher, z: Tensor, exact: Tensor, kind: str, strata: str, K: int, noise: str
) -> None:
    """The mean of 3,000 estimates meets the integral on every coordinate and on 8 random projections: |z| < 4."""
    found = replicates(teacher, z, 3000, seed=K, proposal=kind, strata=strata, resamples=K, coupling=noise)
    g = torch.Generator().manual_seed(3)
    directions = torch.cat([torch.eye(4, dtype=torch.float64), torch.randn(8, 4, generator=g, dtype=torch.float64)])
    errors = (found - exact) @ directions.T
    scores = errors.mean(0) / (errors.std(0) / len(errors) ** 0.5)
    assert (scores.abs() < 4).all(), scores


def test_the_unbiasedness_test_would_see_a_bias(teacher: TwoPointTeacher, z: Tensor, exact: Tensor) -> None:
    """Self-normalised weights, the usual mistake, are caught by the same statistic."""
    carv = Carv(teacher, proposal="importance", strata="none", resamples=2)
    rng = torch.Generator().manual_seed(0)
    found = carv.estimate(z.expand(12_000, *SHAPE), teacher.rows(12_000), rng)
    spoilt = found.fbar.flatten(1) / found.ratio.mean(1, keepdim=True)
    errors = spoilt - exact
    assert ((errors.mean(0) / (errors.std(0) / len(errors) ** 0.5)).abs() > 4).any()


def variance(teacher: TwoPointTeacher, z: Tensor, **options: Any) -> float:
    """tr Cov of the step estimate."""
    return float(replicates(teacher, z, 3000, **options).var(0).sum())


@pytest.mark.parametrize("kind", PROPOSALS)
def test_stratified_varies_less_than_independent(teacher: TwoPointTeacher, z: Tensor, kind: str) -> None:
    """Strata remove the between-strata part of the variance over t, whatever the integrand."""
    none, render, both = (variance(teacher, z, proposal=kind, strata=s, resamples=8) for s in STRATA)
    assert render < 0.95 * none
    assert both < 1.05 * render  # finer strata can only help; 5 % for chance


def test_global_strata_help_where_there_is_one_resample(teacher: TwoPointTeacher, z: Tensor) -> None:
    """With K = 1 the strata of a render do nothing and those of the step do."""
    none, render, both = (variance(teacher, z, proposal="uniform", strata=s, resamples=1) for s in STRATA)
    assert render == pytest.approx(none, rel=0.1)
    assert both < 0.95 * none


def test_importance_varies_less_where_the_residual_is_flat() -> None:
    """For |r| alike at every t, Var_q of (p/q) w r is least for q proportional to p w (Cauchy-Schwarz)."""
    g = torch.Generator().manual_seed(0)
    p, w = uniform_pmf(1000, 20, 980), torch.linspace(0.01, 0.99, 1000, dtype=torch.float64)
    z = torch.zeros(20_000, 3)

    def flat(z: Tensor, t: Tensor, eps: Tensor, r: Tensor) -> Tensor:
        return torch.nn.functional.normalize(eps, dim=1)

    found = {
        kind: averaged(z, flat, proposal(p, w, kind), w, 1, g).fbar.var(0).sum()  # type: ignore[arg-type]
        for kind in PROPOSALS
    }
    # Exactly E[w^2] / E[w]^2 = 4/3 for w uniform on [0, 1].
    assert float(found["uniform"] / found["importance"]) == pytest.approx(4 / 3, rel=0.05)


def test_variance_falls_as_one_over_k(teacher: TwoPointTeacher, z: Tensor) -> None:
    """Independent resamples of a fixed render average like independent draws."""
    how = dict(proposal="uniform", strata="none", coupling="independent")
    one, eight = (variance(teacher, z, resamples=k, **how) for k in (1, 8))
    assert one / eight == pytest.approx(8, rel=0.15)


@pytest.mark.parametrize("noise", ["antithetic", "zero_sum"])
def test_coupled_noise_cancels_what_is_odd_in_it(noise: str) -> None:
    """Of `r = c + a eps + b eps^2` per coordinate, the linear part goes; independent noise keeps a^2 / K of it."""
    p = uniform_pmf(1000, 20, 980)
    w = torch.ones(1000, dtype=torch.float64)
    z, K = torch.zeros(20_000, 3, dtype=torch.float64), 4

    def of(a: float, b: float, how: str) -> float:
        g = torch.Generator().manual_seed(0)
        q = proposal(p, w, "uniform")
        found = averaged(z, lambda z, t, e, r: 1 + a * e + b * e**2, q, w, K, g, coupling=how)  # type: ignore[arg-type]
        return float(found.fbar.var(0).mean())

    assert of(1, 0, "independent") == pytest.approx(1 / K, rel=0.05)
    assert of(1, 0, noise) < 1e-20
    even = of(0, 1, "antithetic")  # pairs share their square: Var(eps^2) / (K / 2)
    assert even == pytest.approx(2 / (K / 2), rel=0.05)
    assert of(2, 0.5, noise) < of(2, 0.5, "independent")


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_chunks_change_nothing(teacher: TwoPointTeacher, z: Tensor, chunk: int) -> None:
    """Same generator, same draws, same average; and no call is larger than the chunk."""
    rows, condition = z.expand(3, *SHAPE), teacher.rows(3)
    whole = Carv(teacher, resamples=4).estimate(rows, condition)
    teacher.calls.clear()
    parts = Carv(teacher, resamples=4, chunk=chunk).estimate(rows, condition)
    torch.testing.assert_close(parts.fbar, whole.fbar, rtol=1e-10, atol=1e-12)
    assert max(teacher.calls) <= chunk and sum(teacher.calls) == 12


def test_loss_has_the_estimate_as_its_gradient(teacher: TwoPointTeacher, z: Tensor) -> None:
    """d loss / d z_r = fbar_r / R, with nothing flowing through the teacher."""
    rows = z.expand(3, *SHAPE).clone().requires_grad_()
    loss, found = Carv(teacher, resamples=4)(rows, teacher.rows(3))
    loss.backward()
    torch.testing.assert_close(rows.grad, found.fbar / 3)


def test_plain_sds_is_one_resample_and_the_uniform_proposal(teacher: TwoPointTeacher, z: Tensor) -> None:
    """The estimate is w(t) r(t, eps) of its one draw, ratio 1."""
    found = Carv(teacher, resamples=1, proposal="uniform").estimate(z[None], teacher.rows(1))
    assert found.ratio.item() == pytest.approx(1)
    t, eps = found.draws.t[0], found.draws.eps[0]
    expected = teacher.schedule.sigma[t] ** 2 * sds(teacher, z[None], t, eps, teacher.rows(1), 1.0)
    torch.testing.assert_close(found.fbar, expected.view_as(found.fbar))


def test_effective_sample_size_counts_equal_draws_fully() -> None:
    """R K for draws of one norm, less for others."""
    w = torch.ones(1000, dtype=torch.float64)
    q = proposal(uniform_pmf(1000, 0, 999), w, "uniform")
    g = torch.Generator().manual_seed(0)
    same = averaged(torch.zeros(2, 5), lambda z, t, e, r: torch.ones_like(z), q, w, 4, g)
    assert float(same.effective_sample_size()) == pytest.approx(8)
    mixed = averaged(torch.zeros(2, 5), lambda z, t, e, r: torch.ones_like(z) * t[:, None], q, w, 4, g)
    assert 1 <= float(mixed.effective_sample_size()) < 8


def test_noise_share_is_that_of_independent_draws() -> None:
    """Of f_k = c + s e_k in D dimensions: s^2 D / K over |c|^2 + s^2 D / K."""
    D, K, s = 2000, 4, 0.5
    g = torch.Generator().manual_seed(0)
    c = torch.ones(3, 1, D) * 0.3
    f = c + s * torch.randn(3, K, D, generator=g)
    norm = f.norm(dim=2)
    draws = Draws(torch.zeros(3, K, dtype=torch.long), f)
    found = Estimate(f.mean(1), draws, torch.ones(3, K), norm).noise_share()
    assert float(found) == pytest.approx((s**2 / K) / (0.09 + s**2 / K), rel=0.05)
    alone = Estimate(f[:, 0], draws, torch.ones(3, 1), norm[:, :1])
    assert torch.isnan(alone.noise_share())


def test_a_residual_that_is_not_finite_is_named() -> None:
    """Nothing is replaced in silence; the message has the timesteps."""
    teacher = TwoPointTeacher(torch.full(SHAPE, float("nan")), torch.zeros(SHAPE))
    with pytest.raises(FloatingPointError, match=r"not finite at timesteps \[\d+"):
        Carv(teacher, resamples=2)(torch.zeros(1, *SHAPE, requires_grad=True), teacher.rows(1))


@pytest.mark.parametrize("bad", [{"resamples": 0}, {"t_range": (0.5, 0.4)}, {"t_range": (0.0, 1.5)}])
def test_bad_settings_are_refused(teacher: TwoPointTeacher, bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Carv(teacher, **bad)


def test_the_documented_use_without_a_teacher() -> None:
    """The block of docs/how-to/estimator.md runs as it stands, and gives a gradient."""
    text = (Path(__file__).parents[1] / "docs" / "how-to" / "estimator.md").read_text()
    block = next(part for part in text.split("```python\n")[1:] if "sds_weight" in part).partition("```")[0]
    z = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    given = {
        "z": z,
        "alphas_cumprod": torch.linspace(0.999, 0.01, 1000, dtype=torch.float64),
        "generator": torch.Generator().manual_seed(1),
        "residual": lambda z, t, eps, r: z - eps,
    }
    exec(block, given)
    loss = given["loss"]
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    assert z.grad is not None and z.grad.norm() > 0
