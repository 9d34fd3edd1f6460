"""A cloud of 3-D Gaussians with opacity and colour (Kerbl et al. 2023, arXiv 2308.04079)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from carv3d.scenes import densification, point_cloud
from carv3d.scenes.base import ImageProjection, RowMap, Scene
from carv3d.scenes.config import GaussiansConfig
from carv3d.scenes.sampled import sample
from carv3d.scenes.spherical_harmonics import C0, basis, functions

if TYPE_CHECKING:
    from carv3d.mesh.base import Field

_LEAST_SPACING = 1e-3  # of the bound: points on one spot still get a size
_HARMONICS_SHARE = 0.05  # of the colours' learning rate, as Kerbl et al.: they would fit views, not the object
_COLOUR_MOST = 0.499 / C0  # coefficient at which a colour is full


class Gaussians(Scene):
    """N Gaussians, each a position, a covariance, an opacity and a colour that may depend on the direction.

    Parameters, a row each: `positions` (N, 3) world units; `log_scales` (N, 3) logarithms of the standard deviations
    along the Gaussian's own axes; `rotations` (N, 4) quaternions w, x, y, z of any length; `opacity_logits` (N,);
    `colours` (N, 3) coefficients of the constant harmonic; `harmonics` (N, K - 1, 3) the others, if there are any.

    Args:
        config: the initial cloud, learning rates and densification.
        generator: draws the ball; on the scene's device.
    """

    gradient_sum: Tensor
    times_seen: Tensor

    def __init__(self, config: GaussiansConfig, generator: torch.Generator) -> None:
        bound, opacity, degree = config.bound, config.opacity, config.degree
        super().__init__(bound=bound)
        self.config = config
        device = generator.device
        if config.points:
            cloud = point_cloud.read(config.points, bound)
        else:
            cloud = point_cloud.ball(config.count, config.radius, generator)
        positions, rgb = cloud.positions.to(device), cloud.rgb.to(device)
        n = len(positions)
        scales = config.spread * point_cloud.spacing(positions, _LEAST_SPACING * bound)
        self.degree = degree
        self.positions = torch.nn.Parameter(positions)
        self.log_scales = torch.nn.Parameter(scales.log()[:, None].repeat(1, 3))
        self.rotations = torch.nn.Parameter(torch.eye(4, device=device)[:1].repeat(n, 1))
        self.opacity_logits = torch.nn.Parameter(torch.full((n,), math.log(opacity / (1 - opacity)), device=device))
        self.colours = torch.nn.Parameter(((rgb - 0.5) / C0).clamp(-_COLOUR_MOST, _COLOUR_MOST))
        if degree:
            self.harmonics = torch.nn.Parameter(torch.zeros(n, functions(degree) - 1, 3, device=device))
        # What the renders since the last densification said, see `after_step`.
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

    def parameter_groups(self, lr: float, progress: float = 0.0) -> list[dict[str, Any]]:
        own = self.config
        schedules = (own.lr_position, own.lr_scale, own.lr_rotation, own.lr_opacity, own.lr_colour)
        shares = [schedule.at(progress) for schedule in schedules]
        shares.append(_HARMONICS_SHARE * shares[-1])
        found = zip(self.parameters(), shares, strict=False)  # of harmonics there may be none
        return [{"params": [parameter], "lr": lr * share} for parameter, share in found]

    def penalties(self) -> dict[str, Callable[[], Tensor]]:
        return {
            "gaussian_opacity": lambda: self.opacities.mean(),
            "gaussian_scale": lambda: self.scales.mean() / self.bound,
            "gaussian_position": lambda: self.positions.square().sum(-1).mean() / self.bound**2,
        }

    @torch.no_grad()
    def after_step(
        self, step: int, progress: float, projection: ImageProjection | None, generator: torch.Generator
    ) -> RowMap | None:
        """Keep colours in range, note the gradients, and now and then densify and prune.

        Raises:
            UserError: every Gaussian is pruned; says by which threshold.
        """
        # In the parameter and not in `rgb` alone, whose clamp would leave them without a gradient out there.
        self.colours.clamp_(-_COLOUR_MOST, _COLOUR_MOST)
        if projection is not None:
            densification.observe(self, projection)
        return densification.change(self, self.config.densify, step, progress, generator)

    def splats(self) -> bytes:
        """See `Scene`."""
        from carv3d.scenes.splat_file import to_ply

        return to_ply(self)

    def field(self, resolution: int) -> Field:
        """Density and colour sampled on a grid: see `carv3d.scenes.sampled`."""
        return sample(self, resolution)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """Takes any number of Gaussians: it changes in the course of a run."""
        if (found := state_dict.get(f"{prefix}positions")) is not None:
            for own in [*self.parameters(), *self.buffers()]:
                own.data = own.data.new_zeros(len(found), *own.shape[1:])
        super()._load_from_state_dict(state_dict, prefix, *args)
