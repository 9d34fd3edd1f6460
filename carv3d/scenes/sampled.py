"""The density of Gaussians on a grid, for the mesh extractor."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from carv3d.scenes.base import inside
from carv3d.scenes.gaussian_cloud import GaussianCloud

_CANDIDATES = 2**21  # most pairs of a Gaussian and a grid point in memory
_LEAST = 1 / 255  # optical thickness below which a Gaussian ends, as on the image
_OPAQUE = 0.999


class SampledField:
    """Density and colour at the points of a regular grid, trilinear in between.

    Args:
        grid: (4, S, S, S) density and density times rgb over [-bound, bound]^3, indexed x, y, z.
        bound: world units.
    """

    def __init__(self, grid: Tensor, bound: float) -> None:
        self.grid = grid
        self.bound = bound

    def query(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Density (N,) per world unit and rgb (N, 3) at points (N, 3); nothing outside the cube."""
        values = self._interpolate(self.grid, points)
        return values[0] * inside(points, self.bound), (values[1:] / values[0].clamp_min(1e-8)).T

    def density(self, points: Tensor) -> Tensor:
        """Density alone."""
        return self._interpolate(self.grid[:1], points)[0] * inside(points, self.bound)

    def _interpolate(self, grid: Tensor, points: Tensor) -> Tensor:
        where = (points / self.bound).flip(-1).view(1, 1, 1, -1, 3)
        return F.grid_sample(grid[None], where, align_corners=True, padding_mode="border").view(len(grid), -1)


@torch.no_grad()
def sample(scene: GaussianCloud, resolution: int) -> SampledField:
    """The scene's density on a grid of `resolution` points a side.

    A ray through the middle of a Gaussian of opacity o meets the optical thickness -log(1 - o), as on an image; for
    that the density there is -log(1 - o) / (sqrt(2 pi) s) with s its standard deviation along the ray. For all
    directions at once s is the geometric mean over the axes. Gaussians are widened by half a cell without changing
    their mass, so that none falls between the points (Mip-Splatting's 3-D filter, arXiv 2311.16493, section 4.1).
    """
    step = 2 * scene.bound / (resolution - 1)
    thickness = -torch.log1p(-scene.opacities.clamp_max(_OPAQUE))
    covariance = scene.covariances()
    widened = covariance + (step / 2) ** 2 * torch.eye(3, device=covariance.device)
    mass = thickness / (math.sqrt(2 * math.pi) * scene.log_scales.mean(1).exp())
    peak = mass * (scene.log_scales.sum(1).exp() / torch.linalg.det(widened).sqrt())
    precision = torch.linalg.inv(widened)
    reach = 2 * (thickness.clamp_min(_LEAST) / _LEAST).log()  # squared Mahalanobis distance
    extent = (reach[:, None] * widened.diagonal(dim1=1, dim2=2)).sqrt()
    centre = (scene.positions + scene.bound) / step
    low = (centre - extent / step).ceil().clamp(0, resolution - 1).long()
    high = (centre + extent / step).floor().clamp(-1, resolution - 1).long() + 1
    size = (high - low).clamp_min(0)
    values = torch.cat([torch.ones_like(peak[:, None]), scene.rgb()], 1)
    grid = torch.zeros(4, resolution**3, device=peak.device)
    counts = size.prod(1)
    runs = (counts.cumsum(0) // _CANDIDATES).unique_consecutive(return_counts=True)[1]
    for rows in torch.arange(len(scene), device=peak.device).split(runs.tolist()):
        which = rows[torch.repeat_interleave(counts[rows])]
        first = counts[rows].cumsum(0) - counts[rows]
        within = torch.arange(len(which), device=which.device) - first[which - rows[0]]
        sides = size[which]
        index = low[which] + torch.stack(
            [within // (sides[:, 1] * sides[:, 2]), within // sides[:, 2] % sides[:, 1], within % sides[:, 2]], 1
        )
        offset = (index - centre[which]) * step
        distance = ((precision[which] @ offset[..., None])[..., 0] * offset).sum(1)
        near = (distance < reach[which]).nonzero()[:, 0]
        density = peak[which[near]] * torch.exp(-0.5 * distance[near])
        flat = (index[near, 0] * resolution + index[near, 1]) * resolution + index[near, 2]
        for channel, value in zip(grid, values.T, strict=True):
            channel.index_add_(0, flat, density * value[which[near]])
    return SampledField(grid.view(4, resolution, resolution, resolution).cpu(), scene.bound)
