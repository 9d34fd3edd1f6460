"""The occupancy: cells of the cube where the density may be positive. Samples in other cells need no query."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from carv3d.scenes import RadianceField


class Occupancy(torch.nn.Module):
    """Decaying maximum of the density in cells, after Instant-NGP (Müller et al. 2022, appendix E).

    A cell counts as occupied if its own or a neighbour's maximum is not negligible. A cell that is not queried gets
    no gradient and could not grow. Therefore a random share of the empty cells counts as occupied too, and every
    refresh queries one new random point of every cell.

    Args:
        resolution: cells along a side of the cube.
        threshold: a bound on the error of pruning: a ray through the whole cube that meets only pruned densities has
            less opacity than this.
        decay: factor on the maximum at a refresh.
        explore: share of the cells opened at random by a refresh.
    """

    maximum: Tensor
    occupied: Tensor

    def __init__(self, *, resolution: int, threshold: float, decay: float = 0.6, explore: float = 1 / 64) -> None:
        super().__init__()
        self.resolution = resolution
        self.threshold = threshold
        self.decay = decay
        self.explore = explore
        shape = (resolution, resolution, resolution)
        self.register_buffer("maximum", torch.zeros(shape))
        # Before the first refresh all cells are occupied.
        self.register_buffer("occupied", torch.ones(shape, dtype=torch.bool))

    @torch.no_grad()
    def refresh(self, scene: RadianceField, generator: torch.Generator) -> None:
        """Query the scene's density, at one random point of every cell."""
        n, device = self.resolution, self.maximum.device
        axis = torch.arange(n, device=device)
        corner = torch.cartesian_prod(axis, axis, axis)
        draws = torch.rand(n**3, 4, generator=generator, device=generator.device).to(device)
        points = (corner + draws[:, :3]) * (2 * scene.bound / n) - scene.bound
        density = scene.density(points).view_as(self.maximum)
        torch.maximum(self.maximum * self.decay, density, out=self.maximum)
        near = F.max_pool3d(self.maximum[None, None], 3, stride=1, padding=1)[0, 0]
        opened = (draws[:, 3] < self.explore).view_as(near)
        self.occupied = (near * (2 * math.sqrt(3) * scene.bound) > self.threshold) | opened

    def at(self, origins: Tensor, directions: Tensor, t: Tensor, bound: float) -> Tensor:
        """(rays, S) bool: whether the points at distances t (rays, S) along rays (rays, 3) lie in occupied cells.

        The points lie in the cube, or beyond it by a rounding error.
        """
        n = self.resolution
        start, slope = (origins + bound) * (0.5 * n / bound), directions * (0.5 * n / bound)
        # Coordinate by coordinate and in floats (exact below 2^24): three times faster than integers (rays,
        # S, 3).
        index = torch.zeros_like(t)
        for axis in range(3):
            cell = torch.addcmul(start[:, axis, None], t, slope[:, axis, None]).floor_().clamp_(0, n - 1)
            index = index.mul_(n).add_(cell)
        return self.occupied.view(-1)[index.int()]
