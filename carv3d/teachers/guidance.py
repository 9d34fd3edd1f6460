"""How predictions under several conditions become one. N draws, B branches."""

from __future__ import annotations

import torch
from torch import Tensor


def classifier_free(uncond: Tensor, cond: Tensor, scale: float) -> Tensor:
    """`uncond + scale (cond - uncond)` (Ho and Salimans, arXiv 2207.12598); at scale 1 `cond` exactly."""
    return cond if scale == 1 else uncond + scale * (cond - uncond)


def perpendicular(x: Tensor, y: Tensor) -> Tensor:
    """The part of x (N, ...) that is perpendicular to y (N, ...), each of the N by itself; x where y is zero."""
    x_flat, y_flat = x.flatten(1), y.flatten(1)
    along = (x_flat * y_flat).sum(1) / y_flat.square().sum(1).clamp_min(torch.finfo(y.dtype).tiny)
    return x - along.view(-1, *[1] * (x.ndim - 1)) * y


def perp_neg(uncond: Tensor, cond: Tensor, negatives: Tensor, weights: Tensor, scale: float) -> Tensor:
    """Perp-Neg (Armandpour et al., arXiv 2304.04968, algorithm 1): of every negative, what is perpendicular to cond.

    `uncond + scale (d + sum_b weights_b perpendicular(negatives_b - uncond, d))` with `d = cond - uncond`. A negative
    that is the unconditional prediction itself changes nothing.

    Args:
        uncond, cond: (N, ...).
        negatives: (N, B, ...).
        weights: (N, B), at most 0.
        scale: of the guidance.
    """
    d = cond - uncond
    for b in range(negatives.shape[1]):
        weight = weights[:, b].view(-1, *[1] * (d.ndim - 1))
        d = d + weight * perpendicular(negatives[:, b] - uncond, cond - uncond)
    return uncond + scale * d
