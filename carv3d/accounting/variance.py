"""The variance of a gradient, and its parts: between renders, and within a render.

With `g` one step's gradient of one render and `c` all that the render depends on (camera, jitter), the law of
total variance says

    tr Cov g  =  tr Cov_c E[g | c]  +  E_c tr Cov(g | c)
    total     =  between            +  within

and a step of R independent renders has 1 / R of each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special
from torch import Tensor

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % confidence interval, by Student's t."""

    value: float
    low: float
    high: float

    @classmethod
    def of_mean(cls, samples: Floats) -> Interval:
        """Of the mean of samples that are (nearly) independent; infinitely wide for fewer than two."""
        value = float(samples.mean()) if len(samples) else math.nan
        if len(samples) < 2:
            return cls(value, -math.inf, math.inf)
        half = float(special.stdtrit(len(samples) - 1, 0.975) * samples.std(ddof=1)) / math.sqrt(len(samples))
        return cls(value, value - half, value + half)

    @property
    def precision(self) -> float:
        """Half the interval's width over the value; infinite where the value is not positive."""
        return (self.high - self.low) / 2 / self.value if self.value > 0 else math.inf


class Spread:
    """Welford's running mean of vectors, with one number a vector whose mean is the trace of their covariance.

    Each number has that expectation: the n-th is `|x_n - mean_{n-1}|^2 (n - 1) / n`.
    They are nearly independent, so that their own spread gives an interval. The first vector has none.
    """

    def __init__(self) -> None:
        self.mean: Tensor | None = None
        self.increments: list[Tensor] = []

    def add(self, x: Tensor) -> None:
        """One more vector (P,). Waits for no device."""
        if self.mean is None:
            self.mean = x.clone()
            return
        n = len(self.increments) + 2
        delta = x - self.mean
        self.increments.append(delta.square().sum(dtype=torch.float64) * (n - 1) / n)
        self.mean += delta / n


class VarianceMeter:
    """Measures variance from replicate gradients, render by render. It keeps one mean vector and two numbers a render.

    Each render gives at least two independent replicates of the *whole* estimate of its K resamples: the spread
    inside one stratified batch would say nothing about the spread of its mean.

    Example:
        meter = VarianceMeter()
        for _ in range(100):
            render = ...                                # new camera
            meter.add(torch.stack([gradient(render), gradient(render)]))   # new t and eps each
        meter.total.value, meter.between.value, meter.within.value
    """

    def __init__(self) -> None:
        self._spread = Spread()
        self._replicates = 0
        self._within: list[Tensor] = []

    def __len__(self) -> int:
        """Renders so far."""
        return len(self._within)

    def add(self, gradients: Tensor) -> None:
        """The replicates (m, P) of one more render, m >= 2 and the same each time. Waits for no device.

        Raises:
            ValueError: another shape than (m, P), or fewer than two replicates.
        """
        if gradients.ndim != 2 or len(gradients) < 2:
            raise ValueError(f"gradients must be (replicates >= 2, parameters), not {tuple(gradients.shape)}")
        mean = self._spread.mean
        if mean is not None and (len(gradients), gradients.shape[1]) != (self._replicates, len(mean)):
            raise ValueError(
                f"every render must have {self._replicates} replicates of {len(mean)} parameters, "
                f"not {tuple(gradients.shape)}"
            )
        gradients = gradients.detach().float()
        self._replicates = len(gradients)
        self._within.append(within(gradients))
        self._spread.add(gradients.mean(0))

    @property
    def mean(self) -> Tensor:
        """(P,) the mean gradient.

        Raises:
            ValueError: nothing was added.
        """
        if self._spread.mean is None:
            raise ValueError("no gradients were added")
        return self._spread.mean

    def samples(self) -> tuple[Floats, Floats]:
        """Per render, the first left out (it has no spread yet): samples of `between` and of `within`, (n - 1,) each.

        For bootstraps over renders: all parts are their means.
        """
        if len(self) < 2:
            return np.empty(0), np.empty(0)
        own = torch.stack(self._within[1:]).cpu().numpy()
        spread = torch.stack(self._spread.increments).cpu().numpy()
        return spread - own / self._replicates, own

    @property
    def between(self) -> Interval:
        """tr Cov_c E[g | c]: the part of the choice of the render, without the noise of the replicates."""
        return Interval.of_mean(self.samples()[0])

    @property
    def within(self) -> Interval:
        """E_c tr Cov(g | c): the part of timesteps and noise."""
        return Interval.of_mean(self.samples()[1])

    @property
    def total(self) -> Interval:
        """tr Cov g of one render."""
        between, own = self.samples()
        return Interval.of_mean(between + own)


def within(replicates: Tensor) -> Tensor:
    """The trace of the covariance of replicates (m, P), unbiased: a scalar, float64."""
    return (replicates - replicates.mean(0)).square().sum(dtype=torch.float64) / (len(replicates) - 1)
