"""The findings of a measurement: a row for every method at every (R, K), and a recommendation."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from carv3d.accounting import (
    BASELINE,
    Baseline,
    CostModel,
    Interval,
    Method,
    best_resamples,
    decay,
    second_moments,
    window_variance,
)
from carv3d.accounting.variance import Floats
from carv3d.cameras import sequence_points
from carv3d.measurement.observation import TABLE, Observation

BOOTSTRAPS = 1000
TRUSTED_Z = 4.0
BETAS = (0.9, 0.99)  # Adam's
SEQUENCES = 200


@dataclass(frozen=True)
class Row:
    """One method at one (R, K). Variances are of a step's gradient; low and high are 95 % intervals.

    Attributes:
        method: see `carv3d.accounting.Method.name`.
        R, K: renders a step, resamples a render.
        proposal, strata, coupling: as in the config's guidance section.
        variance, variance_low, variance_high: tr Cov.
        variance_between, variance_within: its parts; within is variance_timestep + variance_noise.
        cost_ms: measured, or computed from the simulated ratio.
        cost_model_ms: R (c_up + K c_denoise).
        ecm, ecm_low, ecm_high: effective compute multiplier.
        re: relative efficiency.
        z: of the method's mean against the other methods', see `carv3d.accounting.z_scores`; below 4 is agreement.
    """

    method: str
    R: int
    K: int
    proposal: str
    strata: str
    coupling: str
    variance: float
    variance_low: float
    variance_high: float
    variance_between: float
    variance_within: float
    variance_timestep: float
    variance_noise: float
    cost_ms: float
    cost_model_ms: float
    ecm: float
    ecm_low: float
    ecm_high: float
    re: float
    z: float


@dataclass(frozen=True)
class Window:
    """The variance of a moving average of steps with one render each, at a frozen scene.

    Attributes:
        beta: the average's decay.
        baseline: with plain SDS and independent cameras.
        independent, sequence: with the recommended method, by the cameras' order, as in the config's cameras section.
        signal: the squared norm of the mean gradient over all cameras; its estimate may be negative.
    """

    beta: float
    baseline: float
    independent: float
    sequence: float
    signal: float

    @property
    def ratio(self) -> float:
        """The variance with the sequence over that with independent cameras."""
        return self.sequence / self.independent

    @property
    def signal_to_noise(self) -> float:
        """Squared mean gradient over variance of the moving average, for plain SDS."""
        return max(self.signal, 0.0) / self.baseline


@dataclass(frozen=True)
class NoiseReport:
    """All results of a measurement.

    Attributes:
        rows: every method at every (R, K).
        recommended: the method and K with the largest ECM, and the smallest R whose ECM is not significantly lower.
        baseline: uniform, K = 1, R = 1.
        cost_parts: ms of each part of a step of one render, by K.
        cost: the model behind the rows' model costs, in seconds.
        measured_cost: the model fitted to the measured steps, also if `cost` is simulated.
        between, within: of one render at K = 1, uniform.
        predicted_resamples: sqrt(a b).
        edges, norm, norm_error: of the gradient's norm by timestep, sqrt(E |J^T w r|^2); bins (B + 1,), (B,), (B,).
        weight: (T,) w_SDS(t), and
        p: (T,) the target pmf.
        moments: second moments of one draw under the proposals, see `carv3d.accounting.second_moments`.
        windows: variances of moving averages by the cameras' order; empty if the budget was too small.
        detectable_bias: the smallest bias that would have been detected, as a share of a render's mean gradient.
        renders: how many were measured.
        seconds: it took.
    """

    rows: list[Row]
    recommended: Row
    baseline: Row
    cost_parts: dict[int, dict[str, float]]
    cost: CostModel
    measured_cost: CostModel
    between: Interval
    within: Interval
    predicted_resamples: float
    edges: Floats
    norm: Floats
    norm_error: Floats
    weight: Tensor
    p: Tensor
    moments: dict[str, float]
    windows: list[Window]
    detectable_bias: float
    renders: int
    seconds: float

    @property
    def noise_limited(self) -> bool | None:
        """Whether the variance of Adam's first moment exceeds the squared mean gradient under plain SDS; None if not
        measured.
        """
        return self.windows[0].signal_to_noise < 1 if self.windows else None

    @property
    def trusted(self) -> bool:
        """Whether all methods agree on the mean gradient."""
        return max(row.z for row in self.rows) < TRUSTED_Z

    @property
    def setting(self) -> str:
        """The recommended row as overrides of a config."""
        row = self.recommended
        return (
            f"guidance.renders={row.R} guidance.resamples={row.K} "
            f"guidance.proposal={row.proposal} guidance.strata={row.strata} guidance.coupling={row.coupling}"
        )

    def as_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "rows": [asdict(row) for row in self.rows],
            "recommended": asdict(self.recommended) | {"setting": self.setting},
            "between": asdict(self.between),
            "within": asdict(self.within),
            "predicted_resamples": _finite(self.predicted_resamples),
            "cost_ratio": self.cost.ratio,
            "measured_cost_ratio": self.measured_cost.ratio,
            "cost_parts_ms": self.cost_parts,
            "second_moments": {proposal: _finite(moment) for proposal, moment in self.moments.items()},
            "detectable_bias": self.detectable_bias,
            "norm_by_timestep": {
                "edges": self.edges.tolist(),
                "norm": [None if np.isnan(x) else float(x) for x in self.norm],
            },
            "windows": [
                asdict(window) | {"ratio": window.ratio, "signal_to_noise": window.signal_to_noise}
                for window in self.windows
            ],
            "noise_limited": self.noise_limited,
            "trusted": self.trusted,
            "renders": self.renders,
            "seconds": self.seconds,
        }


def _finite(x: float) -> float | None:
    return float(x) if np.isfinite(x) else None  # JSON has no nan and no infinity


def _windows(observed: Observation, between: float, of_one: float, of_best: float) -> list[Window]:
    """The window variances, from the parts of one step's variance: between renders, and within a render for plain SDS
    and for the recommended method.
    """
    if observed.gram is None:
        return []
    gram, full_turn = observed.gram, observed.full_turn
    rng, found = torch.Generator().manual_seed(0), []
    for beta in BETAS:
        count = len(decay(beta))
        offsets = torch.rand(SEQUENCES, 2, generator=rng, dtype=torch.float64)
        free = torch.rand(SEQUENCES, count, 2, generator=rng, dtype=torch.float64)
        cases = {
            "baseline": (free, of_one),
            "independent": (free, of_best),
            "sequence": (sequence_points(0, count, offsets), of_best),
        }
        values = {
            name: window_variance(gram, *TABLE, full_turn, points, beta, between, within)
            for name, (points, within) in cases.items()
        }
        # All cameras are equally likely, so that the mean gradient is the mean over the table.
        found.append(Window(beta, **values, signal=float(gram.mean())))
    return found


def report(observed: Observation, cost_ratio: float | None = None) -> NoiseReport:
    """The report of an observation.

    Args:
        observed: see `observe`.
        cost_ratio: c_up / c_denoise to compute costs with; None: the measured costs.
    """
    found, meter, grid = observed.found, observed.meter, observed.grid
    fitted = meter.model()
    model = fitted if cost_ratio is None else fitted.with_ratio(cost_ratio)

    def cost(R: int, K: int) -> float:
        return meter.total((R, K)) if cost_ratio is None else model(R, K)

    between = found.between_samples()
    drawn = np.random.default_rng(0).integers(len(between), size=(BOOTSTRAPS, len(between)))
    boots = {method: (between + found.within_samples(method))[drawn].mean(1) for method in found.methods}
    means = {method: found.total(method).value for method in found.methods}
    rs = [R for R, K in grid if K == 1]
    baseline = Baseline.of(means[BASELINE], rs, cost)
    baselines = [Baseline.of(float(v), rs, cost) for v in boots[BASELINE]]
    z, rows = found.z(), []
    for method in found.methods:
        uniform, total = means[Method("uniform", "none", method.resamples)], found.total(method)
        within, of_eps = found.within_samples(method).mean(), found.noise_samples(method).mean()
        for R in (R for R, K in grid if method.resamples == K):
            paid = cost(R, method.resamples)
            spread = [b.ecm(float(v) / R, paid) for b, v in zip(baselines, boots[method], strict=True)]
            rows.append(
                Row(
                    method=method.name,
                    R=R,
                    K=method.resamples,
                    proposal=method.proposal,
                    strata=method.strata,
                    coupling=method.coupling,
                    variance=total.value / R,
                    variance_low=total.low / R,
                    variance_high=total.high / R,
                    variance_between=float(between.mean()) / R,
                    variance_within=float(within) / R,
                    variance_timestep=float(within - of_eps) / R,
                    variance_noise=float(of_eps) / R,
                    cost_ms=paid * 1e3,
                    cost_model_ms=model(R, method.resamples) * 1e3,
                    ecm=baseline.ecm(total.value / R, paid),
                    ecm_low=float(np.quantile(spread, 0.025)),
                    ecm_high=float(np.quantile(spread, 0.975)),
                    re=uniform / total.value,
                    z=z[method],
                )
            )
    top = max(rows, key=lambda row: row.ecm)
    # R renders cost R times as much and have 1 / R of the variance, so that the best R is often chance.
    same = [row for row in rows if (row.method, row.K) == (top.method, top.K) and row.ecm_high >= top.ecm]
    best = min(same, key=lambda row: row.R)
    of_views, of_draws = Interval.of_mean(between), Interval.of_mean(found.within_samples(BASELINE))
    edges, squared, error = found.norm_by_timestep(observed.p)
    return NoiseReport(
        rows=rows,
        recommended=best,
        baseline=next(row for row in rows if (row.method, row.R, row.K) == (BASELINE.name, 1, 1)),
        cost_parts={K: {part: s * 1e3 for part, s in meter.parts((1, K)).items()} for R, K in grid if R == 1},
        cost=model,
        measured_cost=fitted,
        between=of_views,
        within=of_draws,
        predicted_resamples=best_resamples(model.c_up, model.c_denoise, of_views.value, of_draws.value),
        edges=edges,
        norm=np.sqrt(squared),
        norm_error=error / (2 * np.sqrt(squared)),
        weight=observed.w,
        p=observed.p,
        moments=second_moments(edges, squared, observed.p, observed.w),
        windows=_windows(observed, of_views.value, of_draws.value, best.variance_within * best.R),
        detectable_bias=found.detectable_bias(),
        renders=len(found.seconds),
        seconds=observed.seconds,
    )
