"""A teacher of your own that is no diffusers pipeline, in one file: it wants pictures of one colour.

    PYTHONPATH=docs/examples carv3d generate "anything" teacher.type=own_teacher.Colour teacher.red=0.9

It is the exact denoiser of Gaussian data, so that what it predicts is a formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from carv3d.cameras import Cameras
from carv3d.config import Context
from carv3d.guidance import Branch
from carv3d.teachers import NoiseSchedule


@dataclass
class Colour:
    """Pictures of one colour, with a little noise."""

    red: float = 0.8  # of the wanted colour, 0 to 1
    green: float = 0.2
    blue: float = 0.2

    def build(self, context: Context) -> ColourTeacher:
        """The teacher on the run's device."""
        return ColourTeacher((self.red, self.green, self.blue), context.device)


class ColourTeacher:
    """The denoiser of data N(colour, spread^2), and of N(grey, 1) without a condition."""

    takes_camera = False
    joint_views = 1
    branches: tuple[Branch, ...] = ("uncond", "cond")

    def __init__(self, colour: tuple[float, float, float], device: torch.device) -> None:
        self.schedule = NoiseSchedule.of_betas("scaled_linear", 0.00085, 0.012, 1000).to(device)
        self.image_size = 16
        self.mean = torch.tensor(colour, device=device).view(3, 1, 1) * 2 - 1
        self.spread = 0.1

    def encode(self, rgb: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """Its latents are small pictures in [-1, 1]."""
        return F.interpolate(rgb, self.image_size, mode="area") * 2 - 1

    def decode(self, z: Tensor) -> Tensor:
        """And back."""
        return (z * 0.5 + 0.5).clamp(0, 1)

    def condition(self, prompt: str, cameras: Cameras, negative: str = "") -> Tensor:
        """One row a view; anything that has rows will do."""
        return torch.zeros(len(cameras), device=self.mean.device)

    def predict(self, z_t: Tensor, t: Tensor, condition: Tensor, branches: Sequence[Branch]) -> dict[Branch, Tensor]:
        """`eps_hat = sigma (z_t - alpha mean) / (alpha^2 spread^2 + sigma^2)`."""
        alpha, sigma = self.schedule.at(t, z_t)
        data: dict[Branch, tuple[Tensor | float, float]] = {"cond": (self.mean, self.spread), "uncond": (0.0, 1.0)}
        return {
            branch: sigma * (z_t - alpha * mean) / (alpha**2 * spread**2 + sigma**2)
            for branch in branches
            for mean, spread in [data[branch]]
        }
