"""A cloud of 3-D Gaussians that is optimised: its start, learning rates, densification and export."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from carv3d.scenes import densification, point_cloud
from carv3d.scenes.base import ImageProjection, RowMap
from carv3d.scenes.config import GaussiansConfig
from carv3d.scenes.gaussian_cloud import COLOUR_MOST, GaussianCloud
from carv3d.scenes.sampled import sample
from carv3d.scenes.splat_file import to_ply

if TYPE_CHECKING:
    from carv3d.mesh.base import Field

_LEAST_SPACING = 1e-3  # of the bound: points at the same place still get a size
_HARMONICS_SHARE = 0.05  # of the colours' learning rate, as Kerbl et al.: larger ones fit views, not the object


class Gaussians(GaussianCloud):
    """A `GaussianCloud` that starts from a ball or from a point cloud, and grows where the gradient is large.

    Args:
        config: the initial cloud, learning rates and densification.
        generator: draws the ball; on the scene's device.
    """

    def __init__(self, config: GaussiansConfig, generator: torch.Generator) -> None:
        if config.points:
            cloud = point_cloud.read(config.points, config.bound)
        else:
            cloud = point_cloud.ball(config.count, config.radius, generator)
        positions, rgb = cloud.positions.to(generator.device), cloud.rgb.to(generator.device)
        scales = config.spread * point_cloud.spacing(positions, _LEAST_SPACING * config.bound)
        super().__init__(positions, rgb, scales, bound=config.bound, opacity=config.opacity, degree=config.degree)
        self.config = config

    def parameter_groups(self, lr: float, progress: float = 0.0) -> list[dict[str, Any]]:
        own = self.config
        schedules = (own.lr_position, own.lr_scale, own.lr_rotation, own.lr_opacity, own.lr_colour)
        shares = [schedule.at(progress) for schedule in schedules]
        shares.append(_HARMONICS_SHARE * shares[-1])
        found = zip(self.parameters(), shares, strict=False)  # without harmonics there is one parameter less
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
        """Keep colours in range, sum the gradients on the image, densify and prune.

        Raises:
            UserError: every Gaussian is pruned; the message names the threshold.
        """
        # The parameter itself is clamped, because colours beyond the clamp of `rgb` would get no gradient.
        self.colours.clamp_(-COLOUR_MOST, COLOUR_MOST)
        if projection is not None:
            densification.observe(self, projection)
        return densification.change(self, self.config.densify, step, progress, generator)

    def splats(self) -> bytes:
        """See `Scene`."""
        return to_ply(self)

    def field(self, resolution: int) -> Field:
        """Density and colour sampled on a grid: see `carv3d.scenes.sampled`."""
        return sample(self, resolution)
