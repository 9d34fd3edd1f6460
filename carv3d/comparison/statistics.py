"""Means, intervals and speed-ups from quality curves. Pure numpy; P prompts, S seeds, C points of a curve, B draws.

Intervals are of 95 %, by bootstrap: seeds are resampled within each prompt, in the same way for all methods, so that
differences are paired. The intervals cover other seeds for the same prompts. With one seed there are no intervals.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

Array = NDArray[np.float64]

_DRAWS = 2000
_TAILS = (0.025, 0.975)


@dataclass(frozen=True)
class Curves:
    """A method's quality during training.

    Attributes:
        steps: (C,), the steps at which quality was measured.
        seconds, calls: (C,), training time and teacher calls up to these steps.
        quality, other: (P, S, C), the two figures of the yardstick.
    """

    steps: Array
    seconds: Array
    calls: Array
    quality: Array
    other: Array


@dataclass(frozen=True)
class Estimate:
    """A figure and its interval.

    Attributes:
        value: None for a speed-up where the baseline's quality was not reached.
        low, high: None with one seed. A speed-up's low is 0 where the quality may never be reached.
    """

    value: float | None
    low: float | None
    high: float | None

    @property
    def holds_zero(self) -> bool | None:
        """Whether the interval holds 0; None without an interval."""
        return None if self.low is None or self.high is None else self.low <= 0 <= self.high


@dataclass(frozen=True)
class Result:
    """The statistics of a method. Quality is that at the end of the runs; differences are to the baseline.

    Attributes:
        quality, quality_difference: the yardstick's first figure.
        other, other_difference: its second.
        speedup: the baseline's time to its own final quality over the method's time to it.
        speedup_calls: the same in teacher calls.
        seconds_needed, calls_needed: to the baseline's final quality; None if it was not reached.
    """

    quality: Estimate
    other: Estimate
    quality_difference: Estimate
    other_difference: Estimate
    speedup: Estimate
    speedup_calls: Estimate
    seconds_needed: float | None
    calls_needed: float | None


class Bootstrap:
    """Resampled seeds within prompts; the same sample for all figures."""

    def __init__(self, prompts: int, seeds: int) -> None:
        self.seeds = seeds
        drawn = np.random.default_rng(0).integers(seeds, size=(_DRAWS, prompts, seeds))
        self._weights: Array = (drawn[..., None] == np.arange(seeds)).mean(2)  # (B, P, S)

    def draws(self, values: Array) -> Array:
        """Means over resampled seeds, (B, P, ...), of values (P, S, ...)."""
        if self.seeds > 1:
            # Few seeds scatter less about their own mean than about the true mean, which is corrected for. Their
            # spread is uncertain, so that the interval is widened by Student's t.
            middle = values.mean(1, keepdims=True)
            freedom = values.shape[0] * (self.seeds - 1)
            wider = np.sqrt(self.seeds / (self.seeds - 1)) * special.stdtrit(freedom, 0.975) / special.ndtri(0.975)
            values = middle + wider * (values - middle)
        found: Array = np.einsum("bps,ps...->bp...", self._weights, values)
        return found

    def interval(self, draws: Array) -> tuple[float | None, float | None]:
        """Low and high of figures (B,)."""
        if self.seeds == 1:
            return None, None
        low, high = np.quantile(draws, _TAILS, method="inverted_cdf")
        return float(low), float(high)

    def band(self, values: Array) -> tuple[Array, Array] | None:
        """Low and high (C,) of the mean curve of values (P, S, C); None with one seed."""
        if self.seeds == 1:
            return None
        low, high = np.quantile(self.draws(values).mean(1), _TAILS, axis=0)
        return low, high

    def mean(self, values: Array) -> Estimate:
        """The mean of values (P, S)."""
        return Estimate(float(values.mean()), *self.interval(self.draws(values).mean(1)))


def reach(axis: Array, curve: Array, target: Array) -> Array:
    """The place on the axis where a curve first reaches a target: linear between its points, infinite if it never does.

    Args:
        axis: (C,), rising.
        curve: (..., C); its running maximum counts.
        target: (...).
    """
    best = np.maximum.accumulate(curve, -1)
    hit = best >= target[..., None]
    last = hit.argmax(-1)
    first = np.maximum(last - 1, 0)
    low, high = (np.take_along_axis(best, index[..., None], -1)[..., 0] for index in (first, last))
    rise = np.where(high > low, high - low, 1.0)
    share = np.where(high > low, (target - low) / rise, 1.0)
    found: Array = axis[first] + np.clip(share, 0, 1) * (axis[last] - axis[first])
    return np.where(hit.any(-1), found, np.inf)


def results(curves: list[Curves]) -> list[Result]:
    """The result of each method; the first is the baseline.

    Args:
        curves: all of the same prompts and seeds.
    """
    bootstrap = Bootstrap(*curves[0].quality.shape[:2])
    base = curves[0]
    return [
        Result(
            quality=bootstrap.mean(mine.quality[..., -1]),
            other=bootstrap.mean(mine.other[..., -1]),
            quality_difference=bootstrap.mean(mine.quality[..., -1] - base.quality[..., -1]),
            other_difference=bootstrap.mean(mine.other[..., -1] - base.other[..., -1]),
            speedup=_speedup(bootstrap, base.seconds, base.quality, mine.seconds, mine.quality),
            speedup_calls=_speedup(bootstrap, base.calls, base.quality, mine.calls, mine.quality),
            seconds_needed=_needed(mine.seconds, mine.quality, base.quality),
            calls_needed=_needed(mine.calls, mine.quality, base.quality),
        )
        for mine in curves
    ]


def _needed(axis: Array, mine: Array, base: Array) -> float | None:
    found = float(reach(axis, mine.mean((0, 1)), base.mean((0, 1))[-1]))
    return found if np.isfinite(found) else None


def _speedup(bootstrap: Bootstrap, base_axis: Array, base: Array, axis: Array, mine: Array) -> Estimate:
    """From quality (P, S, C) of the baseline and of a method."""
    value, _, _ = _ratio(base_axis, base.mean((0, 1)), axis, mine.mean((0, 1)))
    _, low, high = _ratio(base_axis, bootstrap.draws(base).mean(1), axis, bootstrap.draws(mine).mean(1))
    ratio = float(value)
    return Estimate(ratio if np.isfinite(ratio) else None, bootstrap.interval(low)[0], bootstrap.interval(high)[1])


def _ratio(base_axis: Array, base: Array, axis: Array, mine: Array) -> tuple[Array, Array, Array]:
    """Speed-ups (...) of mean curves (..., C), nan where the target is not reached; and their lower and upper
    bounds.
    """
    target = base[..., -1]
    needed, took = reach(base_axis, base, target), reach(axis, mine, target)
    reached = np.isfinite(took)
    ratio = needed / np.where(
        reached, took, axis[-1]
    )  # the target is not reached: the speed-up is smaller than if it were reached at the end
    return np.where(reached, ratio, np.nan), np.where(reached, ratio, 0.0), ratio
