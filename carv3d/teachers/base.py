"""What a teacher is: a noise schedule, an encoder, conditions, and a residual."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from carv3d.cameras import Cameras


@dataclass(frozen=True)
class NoiseSchedule:
    """`z_t = alpha_t z + sigma_t eps` with `alpha_t^2 + sigma_t^2 = 1` on T discrete timesteps.

    Attributes:
        alphas_cumprod: (T,) float64, alpha_t^2, decreasing.
    """

    alphas_cumprod: Tensor

    @classmethod
    def of_betas(cls, kind: str, start: float, end: float, timesteps: int) -> NoiseSchedule:
        """diffusers' "linear" and "scaled_linear" schedules, computed in float64."""
        if kind == "scaled_linear":
            betas = torch.linspace(start**0.5, end**0.5, timesteps, dtype=torch.float64) ** 2
        elif kind == "linear":
            betas = torch.linspace(start, end, timesteps, dtype=torch.float64)
        else:
            raise ValueError(f"unknown beta schedule {kind!r}: 'linear' and 'scaled_linear' are known")
        return cls((1 - betas).cumprod(0))

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def at(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t for timesteps t (N,), shaped (N, 1, ...) to multiply `like` (N, ...)."""
        a = self.alphas_cumprod[t].view(-1, *[1] * (like.ndim - 1))
        return a.sqrt().to(like.dtype), (1 - a).sqrt().to(like.dtype)

    def to(self, device: torch.device | str) -> NoiseSchedule:
        """The same schedule on another device."""
        return NoiseSchedule(self.alphas_cumprod.to(device))


class Teacher(Protocol):
    """A frozen diffusion model that judges pictures.

    Attributes:
        schedule: its noise schedule, on its device.
        image_size: side in pixels of the square pictures it was trained on.
        takes_camera: whether `condition` tells it the camera itself, beyond view words.
    """

    schedule: NoiseSchedule
    image_size: int
    takes_camera: bool

    def encode(self, rgb: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """Latents (R, C, h, w) of pictures (R, 3, H, W) in [0, 1]; differentiable."""
        ...

    def condition(self, prompt: str, cameras: Cameras, negative: str = "") -> Any:
        """What `residual` needs to know of R views; indexing it with (N,) render indices selects rows."""
        ...

    def residual(self, z: Tensor, t: Tensor, eps: Tensor, condition: Any, scale: float) -> Tensor:
        """`eps_hat(alpha_t z + sigma_t eps, t, c; scale) - eps`, all (N, C, h, w); t (N,), condition of N rows.

        Guidance is `uncond + scale (cond - uncond)`; scale 1 is the conditional model exactly. No gradient.
        """
        ...
