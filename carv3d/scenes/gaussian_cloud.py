"""The parameters of a cloud of 3-D Gaussians, and what follows from them (Kerbl et al. 2023, arXiv 2308.04079)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from carv3d.scenes.base import Scene
from carv3d.scenes.spherical_harmonics import C0, basis, functions

COLOUR_MOST = 0.499 / C0
"""The coefficient at which a colour is full."""


class GaussianCloud(Scene):
    """N Gaussians, each a position, a covariance, an opacity and a colour that may depend on the direction.

    Parameters, a row each: `positions` (N, 3) world units; `log_scales` (N, 3) logarithms of the standard deviations
    along the Gaussian's own axes; `rotations` (N, 4) quaternions w, x, y, z of any length; `opacity_logits` (N,);
    `colours` (N, 3) coefficients of the constant harmonic; `harmonics` (N, K - 1, 3) the others, if there are any.

    Args:
        positions: (N, 3) world units; on the scene's device.
        rgb: (N, 3) in [0, 1].
        scales: (N,) standard deviations, world units.
        bound: half the side of the cube, world units.
        opacity: initial opacity, in (0, 1).
        degree: of the spherical harmonics, 0 to 3.
    """

    gradient_sum: Tensor
    times_seen: Tensor

    def __init__(
        self, positions: Tensor, rgb: Tensor, scales: Tensor, *, bound: float, opacity: float, degree: int
    ) -> None:
        super().__init__(bound=bound)
        n, device = len(positions), positions.device
        self.degree = degree
        self.positions = torch.nn.Parameter(positions)
        self.log_scales = torch.nn.Parameter(scales.log()[:, None].repeat(1, 3))
        self.rotations = torch.nn.Parameter(torch.eye(4, device=device)[:1].repeat(n, 1))
        self.opacity_logits = torch.nn.Parameter(torch.full((n,), math.log(opacity / (1 - opacity)), device=device))
        self.colours = torch.nn.Parameter(((rgb - 0.5) / C0).clamp(-COLOUR_MOST, COLOUR_MOST))
        if degree:
            self.harmonics = torch.nn.Parameter(torch.zeros(n, functions(degree) - 1, 3, device=device))
        # The sum of the gradients on the image since the last densification, and the number of renders in it.
        self.register_buffer("gradient_sum", torch.zeros(n, device=device))
        self.register_buffer("times_seen", torch.zeros(n, device=device))

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def scales(self) -> Tensor:
        """(N, 3) standard deviations, world units."""
        return self.log_scales.exp()

    @property
    def opacities(self) -> Tensor:
        """(N,) in (0, 1)."""
        return self.opacity_logits.sigmoid()

    def axes(self) -> Tensor:
        """(N, 3, 3) rotation matrices, whose columns are the Gaussians' own axes in the world."""
        w, x, y, z = F.normalize(self.rotations, dim=-1).unbind(-1)
        rows = [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
        return torch.stack([torch.stack(row, -1) for row in rows], -2)

    def covariances(self) -> Tensor:
        """(N, 3, 3) world units squared."""
        half = self.axes() * self.scales[:, None]
        return half @ half.mT

    def rgb(self, directions: Tensor | None = None) -> Tensor:
        """Colours in [0, 1]: (..., N, 3) seen along unit vectors (..., N, 3), or (N, 3) the mean over all of them."""
        colour = 0.5 + C0 * self.colours
        if directions is not None and self.degree:
            values = torch.cat([basis(degree, directions) for degree in range(1, self.degree + 1)], -1)
            colour = colour + (values[..., None] * self.harmonics).sum(-2)
        return colour.clamp(0, 1)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """Resize to the number of Gaussians in the state: it changes during a run."""
        if (found := state_dict.get(f"{prefix}positions")) is not None:
            for own in [*self.parameters(), *self.buffers()]:
                own.data = own.data.new_zeros(len(found), *own.shape[1:])
        super()._load_from_state_dict(state_dict, prefix, *args)
