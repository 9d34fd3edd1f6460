"""Real spherical harmonics up to degree 3, in the order and with the signs that splat files and viewers use."""

from __future__ import annotations

import math

import torch
from torch import Tensor

C0 = math.sqrt(1 / (4 * math.pi))
"""The constant basis function: a coefficient times this, plus 1/2, is a colour."""


def functions(degree: int) -> int:
    """The number of basis functions up to a degree."""
    return (degree + 1) ** 2


def basis(degree: int, directions: Tensor) -> Tensor:
    """Values (..., K) of the K functions of a degree from 1 to 3, without the constant one.

    Kerbl et al. 2023 (arXiv 2308.04079) take over the order of Ramamoorthi and Hanrahan 2001, with the
    Condon-Shortley phase.

    Args:
        degree: 1 to 3.
        directions: (..., 3) unit vectors from the camera to the seen point, world axes.
    """
    x, y, z = directions.unbind(-1)
    xx, yy, zz = x * x, y * y, z * z

    def norm(numerator: int, denominator: int) -> float:
        return math.sqrt(numerator / (denominator * math.pi))

    if degree == 1:
        values = [-norm(3, 4) * y, norm(3, 4) * z, -norm(3, 4) * x]
    elif degree == 2:
        values = [
            norm(15, 4) * x * y,
            -norm(15, 4) * y * z,
            norm(5, 16) * (2 * zz - xx - yy),
            -norm(15, 4) * x * z,
            norm(15, 16) * (xx - yy),
        ]
    elif degree == 3:
        values = [
            -norm(35, 32) * y * (3 * xx - yy),
            norm(105, 4) * x * y * z,
            -norm(21, 32) * y * (4 * zz - xx - yy),
            norm(7, 16) * z * (2 * zz - 3 * xx - 3 * yy),
            -norm(21, 32) * x * (4 * zz - xx - yy),
            norm(105, 16) * z * (xx - yy),
            -norm(35, 32) * x * (xx - 3 * yy),
        ]
    else:
        raise ValueError(f"degrees from 1 to 3 are known, not {degree}")
    return torch.stack(values, -1)


def rotation(degree: int, turn: Tensor) -> Tensor:
    """The matrix (K, K), float64, that turns coefficients of a degree along with the object.

    The rotated function has at the direction `turn @ d` the value that the function has at d. Functions of one degree
    stay within that degree, so that K directions of general position determine the matrix.

    Args:
        degree: 1 to 3.
        turn: (3, 3) rotation matrix.
    """
    rng = torch.Generator().manual_seed(0)
    directions = torch.randn(64, 3, generator=rng, dtype=torch.float64)
    directions = directions / directions.norm(dim=-1, keepdim=True)
    before, after = basis(degree, directions), basis(degree, directions @ turn.double().cpu().T)
    return torch.linalg.lstsq(after, before).solution
