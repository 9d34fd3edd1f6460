"""The interface of renderers, and of their results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor

from carv3d.scenes.base import ImageProjection, Scene

Background = Literal["white", "random", "learned"] | Sequence[float]
SceneKind = TypeVar("SceneKind", bound=Scene)

EMPTY = 1e-4
"""Below this opacity a pixel's depth is that of the background; it also keeps the division's gradient finite."""


@dataclass
class RaySamples:
    """The samples of a volume renderer, for regularisers of the volume.

    The scene is queried only at the M samples in occupied cells. They are sorted by ray, and along a ray from near to
    far.

    Attributes:
        weights: (M,) contribution of each to its pixel; a ray's sum to the pixel's opacity.
        ray: (M,) int64, which ray; rays are the pixels of all R images, row by row.
        t: (M,) distance along the ray, world units.
        directions: (rays, 3) unit vectors from the camera.
        normals: (M, 3) the density's unit normals, or None if they were not requested.
    """

    weights: Tensor
    ray: Tensor
    t: Tensor
    directions: Tensor
    normals: Tensor | None


@dataclass
class Render:
    """R images of one scene.

    Attributes:
        rgb: (R, 3, H, W) in [0, 1], composited on the background.
        opacity: (R, 1, H, W) in [0, 1].
        depth: (R, 1, H, W) expected distance along the ray given that it hits, world units; beyond the scene
            where nothing is hit.
        normal: (R, 3, H, W) world space, weighted by opacity (so its length is at most that), or None.
        samples: of the rays, or None from a renderer without rays.
        projection: of the scene's parts, or None for a scene without parts.
    """

    rgb: Tensor
    opacity: Tensor
    depth: Tensor
    normal: Tensor | None
    samples: RaySamples | None
    projection: ImageProjection | None = None


class Renderer(torch.nn.Module, Generic[SceneKind]):
    """Makes images of one kind of scene: `renderer(scene, cameras, generator, training=, normals=)` is a `Render`.

    Args:
        background: "white"; "random", one uniform colour an image in training and white otherwise; "learned",
            one colour that is a parameter (it starts grey); or [r, g, b] in [0, 1].
    """

    background_rgb: Tensor

    def __init__(self, background: Background = "white") -> None:
        super().__init__()
        self.background = background
        if background == "learned":
            self.background_logit = torch.nn.Parameter(torch.zeros(3))
        elif not isinstance(background, str):
            self.register_buffer("background_rgb", torch.tensor(background), persistent=False)
        elif background not in ("white", "random"):
            raise ValueError(f"background must be white, random, learned or [r, g, b], got {background!r}")

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Parameter groups for `torch.optim`: the learned background's colour, or none."""
        return [{"params": [self.background_logit], "lr": lr}] if self.background == "learned" else []

    def update_occupancy(self, scene: SceneKind, step: int, generator: torch.Generator) -> None:
        """Called before each step, for renderers that have an occupancy."""

    def backdrop(self, count: int, noise: torch.Generator | None, device: torch.device | str = "cpu") -> Tensor:
        """Background colours, (count, 3); `noise` draws random colours, on its device; None for pictures outside of
        training. White is made on `device`.
        """
        if self.background == "learned":
            return self.background_logit.sigmoid().expand(count, 3)
        if not isinstance(self.background, str):
            return self.background_rgb.expand(count, 3)
        if self.background == "random" and noise is not None:
            return torch.rand(count, 3, generator=noise, device=noise.device)
        return torch.ones(count, 3, device=device)
