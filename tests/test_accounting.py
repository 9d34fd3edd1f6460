"""The accounting against closed forms: hand-made gradients, costs, windows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from carv3d.accounting import (
    Baseline,
    CostMeter,
    CostModel,
    CountSketch,
    Interval,
    VarianceMeter,
    best_resamples,
    decay,
    detectable_bias,
    disagreement,
    gram_of,
    relative_efficiency,
    window_variance,
    z_scores,
)
from carv3d.accounting.windows import on_table
from carv3d.cameras import sequence_points
from carv3d.system.clock import Clock


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
