"""Methods on the same renders, against a linear-Gaussian pipeline whose parts are known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from carv3d.accounting import (
    BASELINE,
    STEADY,
    Measurement,
    Method,
    measure,
    methods,
    second_moments,
)
from carv3d.errors import UserError
from carv3d.guidance import Branch
from carv3d.loss import Carv
from carv3d.teachers import NoiseSchedule


class Linear:
    """A score model whose residual is `c + s eps`, c the render's condition."""

    branches: tuple[Branch, ...] = ("cond",)

    def __init__(self, s: float) -> None:
        self.s, self.schedule = s, NoiseSchedule.of_betas("linear", 1e-4, 0.02, 100)

    def predict(self, z_t: Tensor, t: Tensor, condition: Tensor, branches: Sequence[Branch]) -> dict[Branch, Tensor]:
        _, sigma = self.schedule.at(t, z_t)
        return {"cond": condition + (1 + self.s) * z_t / sigma}  # at z = 0, where z_t = sigma eps


D = 300
A_SCALE, NOISE = 0.7, 1.3


def linear(found: list[Method], renders: int, seed: int) -> tuple[Measurement, Carv]:
    """z = theta, so the gradient is `(p/q) w (c + s eps)` with c ~ N(0, A_SCALE^2 I) a render."""
    theta = torch.zeros(1, D, 1, 1, requires_grad=True)

    def upstream(rng: torch.Generator) -> tuple[Tensor, Tensor]:
        return theta * 1.0, A_SCALE * torch.randn(1, D, 1, 1, generator=rng)

    carv = Carv(Linear(NOISE), weighting="sds", t_range=(0.02, 0.98))
    rng = torch.Generator().manual_seed(seed)
    return measure(carv, upstream, [theta], found, rng, budget=120, most_renders=renders), carv


@pytest.fixture(scope="module")
def measured() -> tuple[Measurement, Carv]:
    return linear(methods([1, 4]), 400, 0)


class TestLinearGaussian:
    def test_all_parts_are_the_closed_forms(self, measured: tuple[Measurement, Carv]) -> None:
        """Within 5 %: between, within, and its timestep and noise parts, of every method."""
        found, carv = measured
        w = carv.w[carv.p > 0]
        mean, condition, noise = w.mean().item(), D * A_SCALE**2, D * NOISE**2
        assert found.between_samples().mean() == pytest.approx(mean**2 * condition, rel=0.05)
        for method in found.methods:
            K = method.resamples
            if method.proposal == "importance":  # (p/q) w is constant
                of_t, of_eps = 0.0, mean**2 * noise / K
            else:
                of_eps = w.square().mean().item() * noise / K
                count = K if method.strata == "render" else 1
                u = torch.linspace(0, 1, 240001, dtype=torch.float64)[:-1].reshape(count, -1)
                spread = w[(u * len(w)).long()].var(1, correction=0).mean().item()
                of_t = spread * condition / K
            of_one = of_t + of_eps
            if method.coupling != "independent":  # all of eps is odd here, and K even
                of_eps = 0.0
            inside = found.within_samples(method).mean()
            assert inside == pytest.approx(of_t + of_eps, abs=0.05 * of_one), method
            assert found.noise_samples(method).mean() == pytest.approx(of_eps, abs=0.05 * of_one), method
            assert inside - found.noise_samples(method).mean() == pytest.approx(of_t, abs=0.05 * of_one), method

    def test_between_of_single_draws_alone(self) -> None:
        """Pairs of draws share a timestep: what that leaves in their mean is not taken for the view's."""
        found, carv = linear(methods([1]), 200, 3)
        mean = carv.w[carv.p > 0].mean().item()
        assert found.between_samples().mean() == pytest.approx(mean**2 * D * A_SCALE**2, rel=0.05)

    def test_every_method_is_unbiased(self, measured: tuple[Measurement, Carv]) -> None:
        assert max(measured[0].z().values()) < 4

    def test_order_of_the_methods(self, measured: tuple[Measurement, Carv]) -> None:
        """What the theory says: strata and the weight's proposal each help, both together most."""

        def inside(proposal: Any, strata: Any) -> float:
            return float(measured[0].within_samples(Method(proposal, strata, 4)).mean())

        plain = inside("uniform", "none")
        assert inside("uniform", "render") < plain and inside("importance", "none") < plain
        assert inside("importance", "render") < 1.03 * inside("uniform", "render")  # strata leave little of t to gain

    def test_second_moments(self, measured: tuple[Measurement, Carv]) -> None:
        """From norms by timestep alone: the moments of the proposals, the oracle's the least."""
        found, carv = measured
        edges, mean, _ = found.norm_by_timestep(carv.p)
        moments = second_moments(edges, mean, carv.p, carv.w)
        w, power = carv.w[carv.p > 0], D * (A_SCALE**2 + NOISE**2)
        assert moments["uniform"] == pytest.approx(w.square().mean().item() * power, rel=0.05)
        assert moments["importance"] == pytest.approx(w.mean().item() ** 2 * power, rel=0.05)
        assert moments["oracle"] <= moments["importance"] * 1.001
        assert moments["oracle"] == pytest.approx(moments["importance"], rel=0.02)  # |r| does not depend on t here

    def test_a_biased_method_is_found_out(self) -> None:
        """Weights forgotten: the importance proposal without p/q."""

        def spoil(self: Carv, **how: Any) -> Carv:
            other = replace(self, **how)
            if how["proposal"] == "importance":
                other.proposal = type(other.proposal).of(other.proposal.q, other.proposal.q)
            return other

        replace = Carv.replace
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Carv, "replace", spoil)
            found, _ = linear(methods([2]), 100, 0)  # whose renders' means have mean zero
        assert max(found.z().values()) > 4
        assert found.detectable_bias() < 0.5

    def test_two_runs_agree_within_their_intervals(self) -> None:
        (one, _), (two, _) = (linear([BASELINE], 200, seed) for seed in (1, 2))
        a, b = one.total(BASELINE), two.total(BASELINE)
        assert abs(a.value - b.value) < (a.high - a.low) / 2 + (b.high - b.low) / 2

    def test_stops_at_the_precision(self) -> None:
        theta = torch.zeros(1, D, 1, 1, requires_grad=True)
        carv = Carv(Linear(NOISE))
        rng = torch.Generator().manual_seed(0)

        def upstream(rng: torch.Generator) -> tuple[Tensor, Tensor]:
            return theta * 1.0, torch.randn(1, D, 1, 1, generator=rng)

        found = measure(carv, upstream, [theta], [BASELINE], rng, budget=60, precision=0.1)
        assert found.worst_precision < 0.1 and STEADY <= len(found.seconds) < 1000

    def test_interrupted_it_reports_what_there_is(self) -> None:
        """Ctrl-C in the middle of a render: that one is forgotten. Before there is enough, it is Ctrl-C."""
        theta = torch.zeros(1, D, 1, 1, requires_grad=True)

        class Tired(Linear):
            calls = 0

            def predict(self, *args: Any) -> dict[Branch, Tensor]:
                self.calls += 1
                if self.calls == self.last:
                    raise KeyboardInterrupt
                return super().predict(*args)

        def run(last: int) -> Measurement:
            teacher = Tired(NOISE)
            teacher.last = last
            rng = torch.Generator().manual_seed(0)

            def upstream(rng: torch.Generator) -> tuple[Tensor, Tensor]:
                return theta * 1.0, torch.randn(1, D, 1, 1, generator=rng)

            return measure(Carv(teacher), upstream, [theta], methods([1, 2]), rng, budget=60)

        per_render = 2 + 4
        found = run(7 * per_render + 3)
        assert len(found.seconds) == 7
        assert all(len(found.within_samples(method)) == len(found.between_samples()) == 6 for method in found.methods)
        assert math.isfinite(max(found.z().values()))
        with pytest.raises(KeyboardInterrupt):
            run(2 * per_render)

    def test_global_strata_are_refused(self) -> None:
        with pytest.raises(ValueError, match="global"):
            linear([Method("uniform", "global", 2)], 1, 0)


class TestMistakes:
    def run(self, upstream: Any, theta: Tensor, budget: float = 60.0, s: float = 1.0) -> None:
        measure(Carv(Linear(s)), upstream, [theta], [BASELINE], torch.Generator(), budget=budget, most_renders=8)

    def test_budget_too_small_says_how_much_is_needed(self) -> None:
        theta = torch.zeros(1, 4, 1, 1, requires_grad=True)
        with pytest.raises(UserError, match="at least"):
            self.run(lambda _: (theta * 1.0, torch.zeros(1, 4, 1, 1)), theta, budget=0.0)

    def test_no_gradient(self) -> None:
        theta = torch.zeros(1, 4, 1, 1, requires_grad=True)
        with pytest.raises(UserError, match="no gradient"):
            self.run(lambda _: (theta.detach(), torch.zeros(1, 4, 1, 1)), theta)

    def test_zero_variance(self) -> None:
        theta = torch.zeros(1, 4, 1, 1, requires_grad=True)
        with pytest.raises(UserError, match="variance is zero"):
            self.run(lambda _: (theta * 0.0, torch.zeros(1, 4, 1, 1)), theta)

    def test_nan(self) -> None:
        theta = torch.zeros(1, 4, 1, 1, requires_grad=True)
        with pytest.raises(UserError, match="not finite"):
            self.run(lambda _: (theta * 1.0, torch.full((1, 4, 1, 1), math.nan)), theta)
