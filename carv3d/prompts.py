"""View-dependent prompts: the same words for every camera, plus where the camera stands.

Poole et al., "DreamFusion" (arXiv 2209.14988), section 3.2, add such words to help a teacher that cannot be
told the camera.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

VIEWS = ("front view", "side view", "back view", "overhead view")


@dataclass(frozen=True)
class ViewPrompts:
    """Which view a camera sees, and what to append to the prompt for it.

    Attributes:
        front, back: half-widths in degrees of the azimuths around 0 and around 180 that count as front, back.
        overhead: elevation in degrees above which every azimuth counts as overhead.
    """

    front: float = 45.0
    back: float = 45.0
    overhead: float = 60.0

    def index(self, azimuth: Tensor, elevation: Tensor) -> Tensor:
        """(R,) indices into `VIEWS` of cameras at these angles in degrees, each (R,)."""
        azimuth = (azimuth + 180.0) % 360.0 - 180.0
        view = torch.ones_like(azimuth, dtype=torch.long)
        view[azimuth.abs() < self.front] = 0
        view[azimuth.abs() > 180.0 - self.back] = 2
        view[elevation > self.overhead] = 3
        return view


def with_views(prompt: str) -> list[str]:
    """The prompt with each of `VIEWS` appended, in their order."""
    return [f"{prompt}, {view}" for view in VIEWS]
