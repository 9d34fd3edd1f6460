"""The accounting against closed forms: hand-made gradients, and a linear-Gaussian pipeline with known parts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from carv3d.accounting import (
    BASELINE,
    STEADY,
    Baseline,
    CostMeter,
    CostModel,
    CountSketch,
    Interval,
    Measurement,
    Method,
    VarianceMeter,
    best_resamples,
    decay,
    detectable_bias,
    disagreement,
    gram_of,
    measure,
    methods,
    relative_efficiency,
    second_moments,
    window_variance,
    z_scores,
)
from carv3d.accounting.windows import on_table
from carv3d.cameras import Cameras, sequence_points
from carv3d.errors import UserError
from carv3d.loss import Carv
from carv3d.teachers import NoiseSchedule
from carv3d.timing import Clock


class TestVarianceMeter:
    def test_parts_of_a_known_mixture(self) -> None:
        """g = a + w with a ~ N(0, 4 I) a render and w ~ N(0, 9 I) a replicate, 32 parameters."""
        rng = torch.Generator().manual_seed(0)
        meter = VarianceMeter()
        for _ in range(2000):
            render = 5 + 2 * torch.randn(1, 32, generator=rng)
            meter.add(render + 3 * torch.randn(3, 32, generator=rng))
        for part, true in ((meter.between, 4 * 32), (meter.within, 9 * 32), (meter.total, 13 * 32)):
            assert part.value == pytest.approx(true, rel=0.03)
            assert part.low < true < part.high

    @pytest.mark.parametrize("renders", [4, 8, 40])
    def test_intervals_hold_the_truth_as_often_as_they_say(self, renders: int) -> None:
        """400 meters: 95 % intervals of `total` miss in 5 % of cases (binomial, 4 sigma)."""
        rng = torch.Generator().manual_seed(1)
        missed = 0
        for _ in range(400):
            meter = VarianceMeter()
            for _ in range(renders):
                meter.add(torch.randn(1, 64, generator=rng) + torch.randn(2, 64, generator=rng))
            missed += not meter.total.low <= 128 <= meter.total.high
        assert missed < 400 * 0.05 + 4 * math.sqrt(400 * 0.05 * 0.95)

    def test_is_the_textbook_formula(self) -> None:
        """The means of the samples are the sample variances of the renders' means, and within the renders."""
        gradients = torch.randn(7, 2, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64).float()
        meter = VarianceMeter()
        for pair in gradients:
            meter.add(pair)
        between, own = meter.samples()
        inside = gradients[1:].var(1).sum(1).mean().item()
        assert own.mean() == pytest.approx(inside, rel=1e-5)
        assert between.mean() + inside / 2 == pytest.approx(gradients.mean(1).var(0).sum().item(), rel=1e-5)
        assert torch.allclose(meter.mean, gradients.mean((0, 1)), atol=1e-6)

    def test_total_is_the_sum_of_its_parts(self) -> None:
        meter = VarianceMeter()
        for _ in range(5):
            meter.add(torch.randn(2, 3))
        assert meter.total.value == pytest.approx(meter.between.value + meter.within.value)

    @pytest.mark.parametrize("shape", [(1, 4), (4,), (2, 2, 2)])
    def test_one_replicate_is_too_few(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match="replicates"):
            VarianceMeter().add(torch.zeros(shape))

    def test_shape_may_not_change(self) -> None:
        meter = VarianceMeter()
        meter.add(torch.zeros(2, 4))
        with pytest.raises(ValueError, match="2 replicates of 4"):
            meter.add(torch.zeros(3, 4))

    def test_one_render_says_nothing(self) -> None:
        meter = VarianceMeter()
        meter.add(torch.zeros(2, 4))
        assert math.isinf(Interval.of_mean(np.ones(1)).high) and meter.total.precision == math.inf


class TestEfficiency:
    def test_ecm_of_the_baseline_is_one(self) -> None:
        baseline = Baseline.of(12.0, [1, 2, 4], lambda R, K: R * (4 + K))
        for R in (1, 2, 3, 4, 8):
            assert baseline.ecm(12.0 / R, R * 5) == pytest.approx(1)

    @given(a=st.floats(0.1, 50), b=st.floats(0.1, 50), K=st.integers(1, 32))
    def test_ecm_of_reuse_is_the_closed_form(self, a: float, b: float, K: int) -> None:
        """Var = A + W/K, cost = c_up + K c_denoise: ECM = (a+1)(b+1)K / ((a+K)(b+K)), largest at sqrt(a b)."""
        baseline = Baseline.of(1 + b, [1, 2, 4, 8], lambda R, K: R * (a + K))

        def ecm(k: float) -> float:
            return baseline.ecm(1 + b / k, a + k)

        assert ecm(K) == pytest.approx((a + 1) * (b + 1) * K / ((a + K) * (b + K)))
        best = best_resamples(a, 1.0, 1.0, b)
        assert best == pytest.approx(math.sqrt(a * b))
        assert ecm(best) >= max(ecm(best * 1.1), ecm(best / 1.1))

    def test_interpolates_in_log_log_between_measured_costs(self) -> None:
        baseline = Baseline(8.0, [1, 4], [1.0, 2.0])
        assert baseline.cost_at(8.0 / 2) == pytest.approx(math.sqrt(2))
        assert baseline.cost_at(8.0 / 16) == pytest.approx(8.0)  # beyond the last: in proportion

    def test_relative_efficiency_and_renders_that_do_not_differ(self) -> None:
        assert relative_efficiency(3.0, 2.0) == 1.5
        assert best_resamples(1.0, 1.0, 0.0, 1.0) == math.inf


class TestCost:
    def test_model_is_found_again(self) -> None:
        settings = [(1, 1), (1, 8), (4, 2), (2, 16)]
        model = CostModel.fit([(R, K, R * (0.04 + K * 0.01)) for R, K in settings])
        assert (model.c_up, model.c_denoise) == pytest.approx((0.04, 0.01))
        assert model.with_ratio(9.0)(2, 1) == pytest.approx(2 * 0.10)

    def test_one_k_is_too_few(self) -> None:
        with pytest.raises(ValueError, match="two different K"):
            CostModel.fit([(1, 4, 1.0), (2, 4, 2.0)])

    def test_meter_takes_the_quickest_round_and_counts_what_is_left_over(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """One slow round in three changes nothing."""
        clock, now = Clock(), [0.0]
        monkeypatch.setattr(Clock, "_now", staticmethod(lambda: now[0]))
        meter = CostMeter(clock)

        def step(render: float, rest: float) -> None:
            with clock("render"):
                now[0] += render
            now[0] += rest

        for slow in (1.0, 50.0, 1.0):
            meter.round({(1, 1): lambda: step(0.3 * slow, 0.1), (1, 4): lambda: step(0.3, 0.4)})  # noqa: B023
        assert meter.parts((1, 1)) == pytest.approx({"render": 0.3, "total": 0.4, "overhead": 0.1})
        assert meter.model()(1, 4) == pytest.approx(0.7)


class TestUnbiasedness:
    def halves(self, bias: float, rng: torch.Generator) -> Tensor:
        """Five methods at one render: its mean, here of any direction, and own noise; method 2 scales the mean."""
        render = torch.randn(64, generator=rng)
        scale = torch.tensor([1.0, 1.0, 1 + bias, 1.0, 1.0])[:, None, None]
        return scale * render + 0.7 * torch.randn(5, 2, 64, generator=rng)

    def z(self, bias: float) -> Tensor:
        rng, shares = torch.Generator().manual_seed(3), torch.full((5,), 0.2)
        return z_scores(torch.stack([disagreement(self.halves(bias, rng), shares) for _ in range(200)], 1))

    def test_methods_with_one_mean_agree(self) -> None:
        assert self.z(0.0).abs().max() < 4

    def test_a_bias_that_cancels_over_the_renders_stands_out(self) -> None:
        """The renders' means have mean zero, and so has the biased method's."""
        z = self.z(0.3)
        assert z.argmax() == 2 and z[2] > 8

    def test_expectation_is_the_squared_bias(self) -> None:
        rng, shares = torch.Generator().manual_seed(4), torch.tensor([0.4, 0.1, 0.2, 0.2, 0.1])
        found = torch.stack([disagreement(self.halves(0.5, rng), shares) for _ in range(4000)]).mean(0)
        assert found[2] == pytest.approx(0.25 * 64, rel=0.05)

    def test_detectable_bias_is_about_the_least_that_is_found(self) -> None:
        rng, shares = torch.Generator().manual_seed(5), torch.full((5,), 0.2)
        rows, power = [], []
        for _ in range(200):
            halves = self.halves(0.0, rng)
            rows.append(disagreement(halves, shares))
            power.append((halves.mean(0)[0] @ halves.mean(0)[1]).double())
        least = float(detectable_bias(torch.stack(rows, 1), torch.stack(power))[2])
        assert self.z(1.5 * least)[2] > 4 > self.z(0.5 * least)[2]

    def test_few_renders_raise_no_alarm(self) -> None:
        """Four renders of pure noise, 300 times: no more alarms than the normal law has."""
        rng = torch.Generator().manual_seed(6)
        z = torch.stack([z_scores(torch.randn(5, 4, generator=rng)) for _ in range(300)])
        assert z.max() < 4.5

    def test_sketch_keeps_products(self) -> None:
        rng = torch.Generator().manual_seed(0)
        sketch = CountSketch(50_000, 4096, rng)
        a = torch.randn(50_000, generator=rng)
        b = 0.5 * a + torch.randn(50_000, generator=rng)
        assert sketch(a) @ sketch(b) / (a @ b) == pytest.approx(1, abs=0.12)


class Linear:
    """A teacher whose residual is `c + s eps`, c the render's condition."""

    image_size, takes_camera = 1, False

    def __init__(self, s: float) -> None:
        self.s, self.schedule = s, NoiseSchedule.of_betas("linear", 1e-4, 0.02, 100)

    def encode(self, rgb: Tensor, rng: torch.Generator | None = None) -> Tensor:
        return rgb

    def condition(self, prompt: str, cameras: Cameras, negative: str = "") -> Any:
        raise NotImplementedError

    def residual(self, z: Tensor, t: Tensor, eps: Tensor, condition: Any, scale: float) -> Tensor:
        return condition + self.s * eps


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
    return linear(methods([1, 2, 4]), 900, 0)


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
            if method.noise != "independent":  # all of eps is odd here, and K even
                of_eps = 0.0
            inside = found.within_samples(method).mean()
            assert inside == pytest.approx(of_t + of_eps, abs=0.05 * of_one), method
            assert found.noise_samples(method).mean() == pytest.approx(of_eps, abs=0.05 * of_one), method
            assert inside - found.noise_samples(method).mean() == pytest.approx(of_t, abs=0.05 * of_one), method

    def test_between_of_single_draws_alone(self) -> None:
        """Pairs of draws share a timestep: what that leaves in their mean is not taken for the view's."""
        found, carv = linear(methods([1]), 1500, 3)
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

            def residual(self, *args: Any) -> Tensor:
                self.calls += 1
                if self.calls == self.last:
                    raise KeyboardInterrupt
                return super().residual(*args)

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


class TestWindows:
    """Against a simulation: mean gradients that are smooth in the camera, with noise a step."""

    ROWS, COLUMNS, NOISE = 24, 12, 0.3

    @staticmethod
    def mean(points: Tensor) -> Tensor:
        """(..., 2) -> (..., 4), smooth and periodic in the first."""
        turn, height = 2 * math.pi * points[..., 0], points[..., 1]
        return torch.stack([turn.cos(), turn.sin() * height, (2 * turn).cos() * 0.5, 3 * (height - 0.5) ** 2], -1)

    def gram(self) -> Tensor:
        x, y = ((torch.arange(n, dtype=torch.float64) + 0.5) / n for n in (self.ROWS, self.COLUMNS))
        nodes = self.mean(torch.cartesian_prod(x, y))
        nodes = nodes - nodes.mean(0)
        return gram_of(nodes, nodes)

    @pytest.mark.parametrize("beta", [0.9, 0.99])
    @pytest.mark.parametrize("order", ["independent", "sequence"])
    def test_as_simulated(self, beta: float, order: str) -> None:
        rng = torch.Generator().manual_seed(0)
        count, runs = len(decay(beta)), 2000
        points = torch.rand(runs, count, 2, generator=rng, dtype=torch.float64)
        if order == "sequence":
            points = sequence_points(0, count, torch.rand(runs, 2, generator=rng, dtype=torch.float64))
        noise = self.NOISE * torch.randn(runs, count, 4, generator=rng, dtype=torch.float64)
        averages = (decay(beta)[:, None] * (self.mean(points) + noise)).sum(1)
        simulated = averages.var(0).sum().item()
        many = self.mean(torch.rand(100_000, 2, generator=rng, dtype=torch.float64))
        between, within = many.var(0).sum().item(), 4 * self.NOISE**2
        found = window_variance(self.gram(), self.ROWS, self.COLUMNS, True, points[:400], beta, between, within)
        assert found == pytest.approx(simulated, rel=0.12)
        if order == "independent":
            assert found == pytest.approx((between + within) * (1 - beta) / (1 + beta), rel=0.12)

    def test_weights_on_the_table_sum_to_one_and_are_even(self) -> None:
        points = torch.rand(4000, 1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        for periodic in (True, False):
            nodes = on_table(points, torch.ones(1, dtype=torch.float64), 4, 3, periodic)
            assert torch.allclose(nodes.sum(-1), torch.ones(4000, dtype=torch.float64))
            z = (nodes.mean(0) - 1 / 12) / (nodes.std(0) / 4000**0.5)
            assert z.abs().max() < 4
