"""Timestep proposals, strata and weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from carv3d.errors import UserError
from carv3d.sampling import Proposal, noise, proposal, sds_weight, stratified_uniforms, uniform_pmf
from carv3d.teachers import NoiseSchedule

SCHEDULE = NoiseSchedule.of_betas("scaled_linear", 0.00085, 0.012, 1000)
ALPHAS = SCHEDULE.alpha, SCHEDULE.sigma
KINDS = ["none", "render", "global"]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@st.composite
def pmfs(draw: st.DrawFn) -> Tensor:
    values = draw(st.lists(st.one_of(st.just(0.0), st.floats(1e-12, 1e6)), min_size=1, max_size=40))
    return torch.tensor(values, dtype=torch.float64)


@given(pmfs(), st.floats(0, 1, exclude_max=True))
def test_icdf_never_draws_a_bin_of_zero_weight(q: Tensor, u: float) -> None:
    """At the ends of the CDF rounding is most tempting, so they are tried as well."""
    if q.sum() == 0:
        with pytest.raises(ValueError, match="positive somewhere"):
            Proposal.of(q, q)
        return
    found = Proposal.of(q, q)
    us = torch.tensor([u, 0.0, 1 - 2**-53], dtype=torch.float64)
    assert (found.q[found.icdf(us)] > 0).all()


@given(pmfs().filter(lambda q: q.sum() > 0), st.floats(0, 1, exclude_max=True))
def test_icdf_inverts_the_cdf(q: Tensor, u: float) -> None:
    """cdf[t - 1] <= u < cdf[t], which is what makes the draw have pmf q."""
    found = Proposal.of(q, q)
    t = int(found.icdf(torch.tensor([u], dtype=torch.float64)))
    below = float(found.cdf[t - 1]) if t else 0.0
    assert below <= u and (u < float(found.cdf[t]) or t == found.last)


def test_draws_follow_the_proposal() -> None:
    """Chi-square of 200,000 draws over 961 bins against q; 4 standard deviations of the statistic."""
    p = uniform_pmf(1000, 20, 980)
    found = proposal(p, sds_weight(*ALPHAS, "sds"), "importance")
    draws = 200_000
    t = found.icdf(stratified_uniforms(draws, 1, "none", rng()).flatten())
    counts, expected = torch.bincount(t, minlength=1000)[20:981], draws * found.q[20:981]
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert abs(statistic - 960) < 4 * (2 * 960) ** 0.5


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [("sds", 0.36), ("uniform", 1.0), ("fantasia3d", 0.8 * 0.36), ("velocity", 1 / 0.8)],
)
def test_weights_are_the_published_ones(weighting: str, expected: float) -> None:
    """At alpha_t = 0.8, sigma_t = 0.6: sigma^2 (DreamFusion), 1, alpha sigma^2 (Fantasia3D), 1 / alpha (flows)."""
    alpha, sigma = torch.tensor([[0.8], [0.6]], dtype=torch.float64)
    assert sds_weight(alpha, sigma, weighting).item() == pytest.approx(expected, rel=1e-12)  # type: ignore[arg-type]


@pytest.mark.parametrize("weighting", ["sds", "uniform", "fantasia3d"])
def test_importance_makes_the_weighted_ratio_constant(weighting: str) -> None:
    """With q proportional to p w, (p/q) w is the same for every t: the average is a plain mean of residuals."""
    p, w = uniform_pmf(1000, 20, 980), sds_weight(*ALPHAS, weighting)  # type: ignore[arg-type]
    product = (proposal(p, w, "importance").ratio * w)[20:981]
    torch.testing.assert_close(product, product.mean().expand_as(product), rtol=1e-12, atol=0)


def test_ratio_is_p_over_q_and_not_self_normalised() -> None:
    """E_q[p/q] = 1 exactly, and each ratio is the plain quotient."""
    p, w = uniform_pmf(1000, 100, 700), sds_weight(*ALPHAS, "sds")
    found = proposal(p, w, "importance")
    assert float((found.q * found.ratio).sum()) == pytest.approx(1, abs=1e-12)
    assert float(found.ratio[300]) == pytest.approx(float(p[300] / ((p * w) / (p * w).sum())[300]), rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@given(renders=st.integers(1, 6), resamples=st.integers(1, 9), seed=st.integers(0, 2**31))
@settings(max_examples=40)
def test_strata_fill_each_stratum_once(kind: str, renders: int, resamples: int, seed: int) -> None:
    """render: one draw in each of K strata of a render; global: besides, one in each of the R K of the step."""
    u = stratified_uniforms(renders, resamples, kind, rng(seed))  # type: ignore[arg-type]
    assert u.shape == (renders, resamples) and u.dtype == torch.float64
    assert ((u >= 0) & (u < 1)).all()
    if kind != "none":
        assert torch.equal((u * resamples).long(), torch.arange(resamples).expand(renders, -1))
    if kind == "global":
        every = (u.flatten() * renders * resamples).long().sort().values
        assert torch.equal(every, torch.arange(renders * resamples))


@pytest.mark.parametrize("kind", KINDS)
def test_each_render_of_any_strata_is_marginally_uniform(kind: str) -> None:
    """The mean over a render's draws has expectation 1/2, its second moment 1/3: |z| < 4 over 4,000 calls."""
    draws = torch.stack([stratified_uniforms(3, 2, kind, g) for g in [rng(7)] for _ in range(4000)])  # type: ignore[arg-type]
    for power, expected in ((1, 1 / 2), (2, 1 / 3)):
        means = (draws**power).mean(2)
        z = (means.mean(0) - expected) / (means.std(0) / len(means) ** 0.5)
        assert (z.abs() < 4).all()


NOISES = ("independent", "antithetic", "zero_sum")


@pytest.mark.parametrize("kind", NOISES)
@given(renders=st.integers(1, 3), resamples=st.integers(1, 9), seed=st.integers(0, 2**31))
@settings(max_examples=20)
def test_coupled_noise_cancels(kind: str, renders: int, resamples: int, seed: int) -> None:
    """Antithetic: neighbours are opposite, an odd last one is alone. Zero-sum: those of a render sum to zero."""
    eps = noise(renders, resamples, (3, 2), rng(seed), torch.float64, kind)  # type: ignore[arg-type]
    assert eps.shape == (renders, resamples, 3, 2)
    if kind == "antithetic":
        assert torch.equal(eps[:, 1::2], -eps[:, : resamples // 2 * 2 : 2])
    if kind == "zero_sum" and resamples > 1:
        assert eps.sum(1).abs().max() < 1e-12


@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize("resamples", [1, 2, 5])
def test_every_noise_is_standard_normal(kind: str, resamples: int) -> None:
    """Each of the K alone: mean 0, variance 1, fourth moment 3, no correlation between coordinates; |z| < 4."""
    eps = noise(20_000, resamples, (2,), rng(3), torch.float64, kind)  # type: ignore[arg-type]
    for k in range(resamples):
        one = eps[:, k]
        for values, mean in ((one, 0.0), (one**2, 1.0), (one**4, 3.0), (one.prod(1, keepdim=True), 0.0)):
            assert (((values.mean(0) - mean) / (values.std(0) / len(values) ** 0.5)).abs() < 4).all()


def test_unknown_noise_is_refused() -> None:
    with pytest.raises(UserError, match="antithetic"):
        noise(1, 1, (1,), rng(0), torch.float32, "pink")  # type: ignore[arg-type]


def test_same_generator_state_same_draws() -> None:
    """Resume rests on it."""
    assert torch.equal(stratified_uniforms(2, 3, "global", rng(5)), stratified_uniforms(2, 3, "global", rng(5)))
    assert torch.equal(noise(2, 3, (4,), rng(5), torch.float32), noise(2, 3, (4,), rng(5), torch.float32))


@pytest.mark.parametrize("t_min, t_max", [(-1, 10), (10, 9), (0, 1000)])
def test_range_outside_the_schedule_is_refused(t_min: int, t_max: int) -> None:
    with pytest.raises(ValueError, match="within the schedule's 0 to 999"):
        uniform_pmf(1000, t_min, t_max)


def test_schedule_is_exact_where_half_precision_is_not() -> None:
    """1 - alphas_cumprod at t = 0 is beta_start; float16 would be 15 % off."""
    assert float(sds_weight(*ALPHAS, "sds")[0]) == pytest.approx(0.00085, rel=1e-12)
