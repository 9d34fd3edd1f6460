"""A scene of your own that is a field, in one file: a sum of soft balls.

    PYTHONPATH=docs/examples carv3d generate "a red snowman" scene.type=own_scene.Balls scene.count=24

`Balls` is the section of the config: its fields are the keys, and `build` makes the scene. A field gets carv3d's volume
renderer, previews, meshes and all else.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from carv3d.config import Context
from carv3d.scenes import RadianceField
from carv3d.scenes.base import inside


@dataclass
class Balls:
    """A sum of soft balls, each of one colour."""

    bound: float = 1.0  # half side of the cube that holds the object, world units
    count: int = 32  # balls

    def build(self, context: Context) -> BallField:
        """The scene at its start, on the run's device."""
        return BallField(self.bound, self.count, context.rng).to(context.device)


class BallField(RadianceField):
    """Density `sum_i d_i exp(-|x - c_i|^2 / 2 s_i^2)`, and the colours' mean with these weights."""

    def __init__(self, bound: float, count: int, generator: torch.Generator) -> None:
        super().__init__(bound=bound, normal_step=0.02)
        start = 0.5 * torch.randn(count, 3, generator=generator, device=generator.device)
        self.centres = torch.nn.Parameter(start.clamp(-0.8 * bound, 0.8 * bound))
        self.log_sizes = torch.nn.Parameter(torch.full((count,), -1.6, device=generator.device))
        self.densities = torch.nn.Parameter(torch.full((count,), 2.0, device=generator.device))
        self.colours = torch.nn.Parameter(torch.zeros(count, 3, device=generator.device))

    def query(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Density (N,) and rgb (N, 3) at points (N, 3)."""
        squares = (points[:, None] - self.centres).square().sum(-1)
        parts = torch.nn.functional.softplus(self.densities) * torch.exp(-squares / (2 * (2 * self.log_sizes).exp()))
        density = parts.sum(1)
        rgb = parts @ self.colours.sigmoid() / density[:, None].clamp_min(1e-8)
        return 5 * density * inside(points, self.bound), rgb.clamp(0, 1)

    def total_variation(self) -> Tensor:
        """Balls are smooth: nothing to penalise."""
        return self.densities.new_zeros(())
