"""What a teacher is: a noise schedule, an encoder, conditions, and a residual."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from carv3d.cameras import Cameras
from carv3d.teachers.schedule import NoiseSchedule


class Teacher(Protocol):
    """A frozen diffusion model that judges pictures.

    Attributes:
        schedule: its noise schedule, on its device.
        image_size: side in pixels of the square pictures it was trained on.
        takes_camera: whether `condition` tells it the camera itself, beyond view words.
        joint_views: V, how many views of the object it judges together, evenly spaced around it; 1 for most. With
            more (as MVDream, Shi et al., arXiv 2308.16512, has 4) `condition` gets R V cameras, render by render, for R
            rows, and `residual` gets z (N, V, C, h, w): V views are one render, and share their t.
    """

    schedule: NoiseSchedule
    image_size: int
    takes_camera: bool
    joint_views: int

    def encode(self, rgb: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """Latents (R, C, h, w) of pictures (R, 3, H, W) in [0, 1]; differentiable."""
        ...

    def decode(self, z: Tensor) -> Tensor:
        """Pictures (R, 3, H, W) in [0, 1] of latents; for people to look at, no part of a step."""
        ...

    def condition(self, prompt: str, cameras: Cameras, negative: str = "") -> Any:
        """What `residual` needs to know of R views; indexing it with (N,) render indices selects rows."""
        ...

    def residual(self, z: Tensor, t: Tensor, eps: Tensor, condition: Any, scale: float) -> Tensor:
        """`eps_hat(alpha_t z + sigma_t eps, t, c; scale) - eps`, all (N, C, h, w); t (N,), condition of N rows.

        Guidance is `uncond + scale (cond - uncond)`; scale 1 is the conditional model exactly. No gradient.
        """
        ...
