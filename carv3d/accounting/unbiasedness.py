"""A test whether methods have the same mean gradient at every render.

A bias may cancel in the mean over renders. So each render is tested by itself. Of two independent halves of a
method's replicates and of all other methods', the product

    U = <first - others' first, second - others' second>

has the expectation |E[method | render] - E[others | render]|^2: zero if they agree, positive if they do not.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import special
from torch import Tensor


class CountSketch:
    """A count sketch: short vectors whose inner products approximate those of long ones. Each entry is added, with a
    random sign, at a random place.
    """

    def __init__(self, length: int, size: int, rng: torch.Generator) -> None:
        """Map `length` entries to `size`; inner products keep a relative error of about sqrt(2 / size)."""
        self._place = torch.randint(size, (length,), generator=rng, device=rng.device)
        self._sign = torch.randint(2, (length,), generator=rng, device=rng.device, dtype=torch.int8).mul_(2).sub_(1)
        self._size = size

    def to(self, device: torch.device | str) -> CountSketch:
        """The same sketch on another device."""
        self._place, self._sign = self._place.to(device), self._sign.to(device)
        return self

    def __call__(self, vectors: Tensor) -> Tensor:
        """(..., length) -> (..., size)"""
        short = vectors.new_zeros(*vectors.shape[:-1], self._size)
        return short.index_add_(-1, self._place, vectors * self._sign)


def disagreement(halves: Tensor, shares: Tensor) -> Tensor:
    """U of one render for every method.

    Args:
        halves: (methods, 2, D): means of two independent halves of each method's replicates, sketched or whole.
        shares: (methods,) of each method in the pooled mean; they sum to 1.

    Returns:
        (methods,) float64; zero for a method that has no others.
    """
    if len(halves) < 2:
        return halves.new_zeros(len(halves), dtype=torch.float64)
    x, share = halves.double(), shares.double()[:, None, None]
    pooled = (share * x).sum(0, keepdim=True)
    others = (pooled - share * x) / (1 - share)
    first, second = (x - others).unbind(1)
    return (first * second).sum(-1)


def z_scores(samples: Tensor) -> Tensor:
    """How far above zero the mean of each row's samples is, in standard errors.

    Student's t for so many renders is turned into the z of the same probability: few renders give no false alarm.

    Args:
        samples: (methods, renders >= 2) of `disagreement`.

    Returns:
        (methods,) float64; at most 38, where the probability underflows.
    """
    x = samples.double().cpu().numpy()
    error = x.std(1, ddof=1) / x.shape[1] ** 0.5
    t = np.divide(x.mean(1), error, out=np.zeros(len(x)), where=error > 0)
    return torch.from_numpy(np.clip(-special.ndtri(special.stdtr(x.shape[1] - 1, -t)), -38, 38))


def detectable_bias(samples: Tensor, power: Tensor, z: float = 4.0) -> Tensor:
    """The smallest detectable bias, as a share of the mean gradient of a render: (methods,).

    Args:
        samples: (methods, renders >= 2) of `disagreement`.
        power: (renders,) products of two independent estimates of a render's mean gradient.
        z: from which a method counts as biased.
    """
    error = samples.double().std(1) / samples.shape[1] ** 0.5
    return (z * error / power.double().mean().clamp_min(1e-300)).sqrt()
