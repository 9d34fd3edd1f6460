"""Densities along rays to weights, and weights to pixels: torch, and nerfacc's dense mode on CUDA.

Samples are dense, (rays, S): S intervals a ray, in order. Quadrature of Max (1995), as in NeRF (Mildenhall et
al. 2020): within an interval the density is constant.
"""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache

import torch
from torch import Tensor


@cache
def _has_nerfacc() -> bool:
    return importlib.util.find_spec("nerfacc") is not None


def render_weights(density: Tensor, t_starts: Tensor, t_ends: Tensor) -> Tensor:
    """Weight of every sample in its pixel, (rays, S); a row sums to the pixel's opacity.

    Args:
        density: (rays, S) per world unit.
        t_starts, t_ends: (rays, S) where the intervals start and end along the ray, world units.
    """
    # The device decides, not an attempt that may fail: a failed JIT build would spoil nerfacc's later calls.
    if density.is_cuda and _has_nerfacc():
        return nerfacc_weights(density, t_starts, t_ends)
    return torch_weights(density, t_starts, t_ends)


def accumulate(weights: Tensor, values: Tensor) -> Tensor:
    """Sum along rays of weights (rays, S) times values (D, rays, S): (rays, D).

    Values come channel by channel: on CPU sums over the innermost axis are 3 times quicker.
    """
    if weights.is_cuda and _has_nerfacc():
        return nerfacc_accumulate(weights, values)
    return torch_accumulate(weights, values)


def torch_weights(density: Tensor, t_starts: Tensor, t_ends: Tensor) -> Tensor:
    """`render_weights` in torch, on any device."""
    thickness = density * (t_ends - t_starts)
    transmittance = (thickness - thickness.cumsum(-1)).exp()
    return -transmittance * torch.expm1(-thickness)


def torch_accumulate(weights: Tensor, values: Tensor) -> Tensor:
    """`accumulate` in torch, on any device."""
    return (weights * values).sum(-1).T


def nerfacc_weights(density: Tensor, t_starts: Tensor, t_ends: Tensor) -> Tensor:
    """`render_weights` by nerfacc, on any device: its dense mode needs no CUDA."""
    weights: Tensor = importlib.import_module("nerfacc").render_weight_from_density(t_starts, t_ends, density)[0]
    return weights


def nerfacc_accumulate(weights: Tensor, values: Tensor) -> Tensor:
    """`accumulate` by nerfacc, on any device."""
    sums: Tensor = importlib.import_module("nerfacc").accumulate_along_rays(weights, values.permute(1, 2, 0))
    return sums
