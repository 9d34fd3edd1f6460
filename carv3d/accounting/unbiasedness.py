"""Whether methods agree on the mean gradient."""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 2**20  # parameters at a time, whose signs are turned into floats


class SignProjection:
    """A gradient's products with some fixed vectors of random signs."""

    def __init__(self, parameters: int, count: int, rng: torch.Generator) -> None:
        """`count` vectors of `parameters` signs, on the generator's device."""
        shape = (count, parameters)
        self._signs = torch.randint(2, shape, generator=rng, device=rng.device, dtype=torch.int8).mul_(2).sub_(1)

    def __call__(self, gradients: Tensor) -> Tensor:
        """(m, P) -> (m, count) float64."""
        found = gradients.new_zeros(len(gradients), len(self._signs), dtype=torch.float64)
        for part, signs in zip(gradients.split(_BLOCK, 1), self._signs.split(_BLOCK, 1), strict=True):
            found += part @ signs.T.to(part.dtype)
        return found


def z_scores(projections: Tensor) -> Tensor:
    """How far each method's mean is from that of all others, in standard errors.

    Args:
        projections: (methods >= 2, renders >= 2, count): each method's mean gradient of each render, projected. All
            methods have seen the same renders, so that only their own noise counts.

    Returns:
        (methods, count) float64; zero where method and others agree exactly.
    """
    x = projections.double()
    methods, renders, _ = x.shape
    others = (x.sum(0, keepdim=True) - x) / (methods - 1)
    difference = x - others
    error = difference.std(1) / renders**0.5
    return torch.where(error > 0, difference.mean(1) / error, 0.0)
