"""A camera sampler of your own, in one file: cameras near the front of the object.

PYTHONPATH=docs/examples carv3d generate "a red chair" cameras.type=own_cameras.Frontal cameras.spread=30
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from carv3d.cameras import Cameras, Sampler
from carv3d.config import Context


@dataclass
class Frontal:
    """Cameras whose azimuths are normal around the front."""

    spread: float = 45.0  # standard deviation of the azimuth, degrees
    elevation: float = 15.0  # degrees
    height: int = 64  # pixels
    width: int = 64  # pixels

    def build(self, context: Context) -> FrontalSampler:
        """The sampler."""
        return FrontalSampler(self)


class FrontalSampler(Sampler):
    """Draws from the run's generator."""

    def __init__(self, section: Frontal) -> None:
        self.section, self.height, self.width = section, section.height, section.width

    def sample(self, count: int, generator: torch.Generator) -> Cameras:
        """`count` cameras on the generator's device."""
        azimuth = self.section.spread * torch.randn(count, generator=generator, device=generator.device)
        elevation = torch.full_like(azimuth, self.section.elevation)
        return Cameras.look_at_origin(azimuth, elevation, height=self.height, width=self.width)
