"""The encoding of a camera for a teacher that takes cameras."""

from __future__ import annotations

import torch
from torch import Tensor


def camera_vector(azimuth: Tensor, elevation: Tensor) -> Tensor:
    """(R, 4): sine and cosine of azimuth, sine and cosine of elevation, from (R,) degrees each.

    All zeros, which no camera gives, means an unknown camera.
    """
    a, e = azimuth.float().deg2rad(), elevation.float().deg2rad()
    return torch.stack([a.sin(), a.cos(), e.sin(), e.cos()], -1)
