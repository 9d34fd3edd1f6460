r"""A scene that is no field, with a renderer of its own, in one file: a flat picture on a card.

    PYTHONPATH=docs/examples carv3d generate "a red chair" scene.type=own_image_scene.Card mesh.formats=[] \
        cameras.type=own_cameras.Frontal regularisers.total_variation=0

The section names its renderer. A scene says what it has: no surface here, so that no mesh can be asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from carv3d.cameras import Cameras
from carv3d.config import Context
from carv3d.errors import UserError
from carv3d.renderers import Render, Renderer
from carv3d.scenes import Scene


@dataclass
class Card:
    """A picture that looks the same from everywhere."""

    bound: float = 1.0  # world units; a card has no size of its own
    side: int = 64  # pixels

    renderer: ClassVar[str] = "own_image_scene.Flat"
    mesh_formats: ClassVar[tuple[str, ...]] = ()
    penalties: ClassVar[tuple[str, ...]] = ()

    def build(self, context: Context) -> CardScene:
        """The scene at its start."""
        return CardScene(self.bound, self.side).to(context.device)


@dataclass
class Flat:
    """The renderer of a card."""

    shade: float = 1.0  # brightness, 0 to 1

    def build(self, context: Context) -> FlatRenderer:
        """The renderer."""
        return FlatRenderer(self.shade).to(context.device)


class CardScene(Scene):
    """Pixels."""

    def __init__(self, bound: float, side: int) -> None:
        super().__init__(bound=bound)
        self.logits = torch.nn.Parameter(torch.zeros(1, 3, side, side))

    def field(self, resolution: int) -> NoReturn:
        """There is none."""
        raise UserError("a card has no surface: use mesh.formats=[]")


class FlatRenderer(Renderer[CardScene]):
    """Shows the card to every camera."""

    def __init__(self, shade: float) -> None:
        super().__init__("white")
        self.shade = shade

    def forward(
        self,
        scene: CardScene,
        cameras: Cameras,
        generator: torch.Generator | None = None,
        *,
        training: bool = True,
        normals: bool = False,
    ) -> Render:
        """R pictures of the cameras' size."""
        rgb = self.shade * F.interpolate(scene.logits.sigmoid(), (cameras.height, cameras.width), mode="bilinear")
        rgb = rgb.expand(len(cameras), -1, -1, -1)
        opacity = torch.ones_like(rgb[:, :1])
        normal: Tensor | Any = torch.zeros_like(rgb) if normals else None
        return Render(rgb, opacity, 3 * opacity, normal, None)
