"""The interfaces of score models and teachers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from carv3d.cameras import Cameras
from carv3d.guidance import Branch
from carv3d.teachers.schedule import NoiseSchedule


class ScoreModel(Protocol):
    """A frozen diffusion model on latents, as far as the estimator needs it.

    Attributes:
        schedule: its noise schedule, on its device.
        branches: the predictions that it has: at least "cond"; "uncond" if it has an unconditional one; "negatives"
            if conditions may have some for Perp-Neg.
    """

    schedule: NoiseSchedule

    @property
    def branches(self) -> Collection[Branch]:
        """See the class."""
        ...

    def predict(self, z_t: Tensor, t: Tensor, condition: Any, branches: Sequence[Branch]) -> dict[Branch, Tensor]:
        """Raw predictions of the noise, `eps_hat(z_t, t, c)` without guidance, by branch.

        Args:
            z_t: (N, C, h, w) noised latents.
            t: (N,) timesteps.
            condition: of N rows.
            branches: the wanted ones, if possible in one call of the network.

        Returns:
            (N, C, h, w) each; (N, B, C, h, w) of B negatives.
        """
        ...


class Teacher(ScoreModel, Protocol):
    """A score model that also encodes, decodes, and makes conditions: what `carv3d generate` trains with.

    Attributes:
        image_size: side in pixels of the square pictures it was trained on.
        takes_camera: whether `condition` includes the camera itself, besides view words.
        joint_views: V, the number of views that it predicts jointly, evenly spaced around the object; 1 for most. With
            more (as MVDream, Shi et al., arXiv 2308.16512, has 4) `condition` gets R V cameras, render by render, for R
            rows, and `predict` gets z_t (N, V, C, h, w): V views are one render, and share their t.
    """

    image_size: int
    takes_camera: bool
    joint_views: int

    def encode(self, rgb: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """Latents (R, C, h, w) of pictures (R, 3, H, W) in [0, 1]; differentiable."""
        ...

    def decode(self, z: Tensor) -> Tensor:
        """Pictures (R, 3, H, W) in [0, 1] of latents; not used in a step."""
        ...

    def condition(self, prompt: str, cameras: Cameras, negative: str = "") -> Any:
        """The condition of R views for `predict`; indexing with (N,) render indices selects rows."""
        ...
