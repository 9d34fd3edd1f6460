"""The config of carv3d's own renderers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from carv3d import registry
from carv3d.config.components import Context
from carv3d.config.keys import Key

Backend = Literal["auto", "torch", "gsplat", "nerfacc", "numba"]


@dataclass
class RendererConfig:
    """How a scene becomes an image."""

    type: Literal["auto"] = "auto"  # auto: the renderer that the scene names
    background: Annotated[
        Literal["white", "random", "learned"] | list[float],
        Key("or a colour", ge=0, le=1, length=3, allowed="white, random, learned or [r, g, b] from 0 to 1"),
    ] = "white"
    backend: Annotated[Backend, Key("auto: on CUDA gsplat or nerfacc, on the CPU numba, if it works; else torch")] = (
        "auto"
    )
    samples: Annotated[int, Key("along a ray, of fields", ge=1, le=16_384)] = 64
    occupancy_resolution: Annotated[
        int, Key("cells along a side of the mask that skips empty space, of fields; 0: no mask", ge=0, le=256)
    ] = 32
    occupancy_every: Annotated[int, Key("steps between two updates of the mask", ge=1, le=100_000_000)] = 16
    occupancy_threshold: Annotated[
        float, Key("largest opacity that a ray may lose to what the mask skips; 0: nothing", ge=0)
    ] = 0.1

    def build(self, context: Context) -> Any:
        """The renderer that the scene names; a plug-in's by its name in the registry."""
        from carv3d.renderers.splat import SplatRenderer
        from carv3d.renderers.volume import VolumeRenderer

        kind = getattr(context.config.scene, "renderer", "volume")
        own: dict[str, Any] = {"volume": VolumeRenderer, "splat": SplatRenderer}
        if kind in own:
            return own[kind](self, device=context.device).to(context.device)
        return registry.find("renderer", kind)().build(context)
