"""Efficiency of a method, as the paper defines it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Baseline:
    """The baseline: uniform, independent, K = 1. Its variance with one render, and the cost of its steps.

    Attributes:
        variance: of one render; R renders have 1 / R of it.
        renders: the R whose cost is known, ascending.
        cost: of a step with each of them.
    """

    variance: float
    renders: Sequence[int]
    cost: Sequence[float]

    @classmethod
    def of(cls, variance: float, renders: Sequence[int], cost: Callable[[int, int], float]) -> Baseline:
        """From a cost of (R, K)."""
        ordered = sorted(set(renders))
        return cls(variance, ordered, [cost(R, 1) for R in ordered])

    def cost_at(self, variance: float) -> float:
        """The baseline's cost of this variance.

        Its (variance, cost) points are joined by straight lines in log-log; beyond them cost and 1 / variance
        grow together (paper, section 4).
        """
        needed = self.variance / variance  # renders, not whole
        first, last = self.renders[0], self.renders[-1]
        if needed <= first:
            return self.cost[0] * needed / first
        if needed >= last:
            return self.cost[-1] * needed / last
        return math.exp(float(np.interp(math.log(needed), np.log(self.renders), np.log(self.cost))))

    def ecm(self, variance: float, cost: float) -> float:
        """The effective compute multiplier: the baseline's cost at a method's variance over the method's cost."""
        return self.cost_at(variance) / cost


def relative_efficiency(uniform: float, method: float) -> float:
    """RE: the variance of uniform independent draws over the method's, at the same (R, K)."""
    return uniform / method


def best_resamples(c_up: float, c_denoise: float, between: float, within: float) -> float:
    """The K that minimises `(between + within / K) (c_up + K c_denoise)`, not rounded; `within` is that of K = 1.

    It is `sqrt(a b)` with `a = c_up / c_denoise` and `b = within / between`; infinite if renders do not differ.
    """
    if between <= 0:
        return math.inf
    return math.sqrt(c_up / c_denoise * max(within, 0.0) / between)
