"""The section of carv3d's own renderers. A plug-in's has keys of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from carv3d import registry
from carv3d.config.rules import Rule, at_least
from carv3d.config.section import Context, Section


@dataclass
class Renderer(Section):
    """How a scene becomes an image."""

    type: Literal["auto"] = "auto"  # auto: as the scene asks for, volume rendering or splatting
    background: Any = "white"  # white | random | learned | [r, g, b] in 0..1
    backend: Literal["auto", "torch", "gsplat", "nerfacc"] = "auto"  # auto: on CUDA gsplat or nerfacc if it works
    samples: int = 64  # of fields: along a ray
    occupancy_resolution: int = 32  # of fields: cells along a side of the mask that skips empty space; 0: no mask
    occupancy_every: int = 16  # steps between its refreshes
    occupancy_threshold: float = 0.1  # most opacity that a ray may lose to what the mask skips; 0: nothing

    def build(self, context: Context) -> Any:
        """See `Section`; the kind of renderer is the scene's to say, a plug-in's by its name."""
        kind = getattr(context.config.scene, "renderer", "volume")
        keys = self.keys()
        if isinstance(keys["background"], list):
            keys["background"] = tuple(keys["background"])
        match kind:
            case "volume":
                from carv3d.renderers import VolumeRenderer

                return VolumeRenderer(**keys, device=context.device).to(context.device)
            case "splat":
                from carv3d.renderers import SplatRenderer

                shared = {key: keys[key] for key in ("background", "backend")}
                return SplatRenderer(**shared, device=context.device).to(context.device)
        return registry.find("renderer", kind)().build(context)

    def rules(self, prefix: str) -> Iterator[Rule]:
        """See `Section`."""
        yield from at_least(self, prefix, samples=1, occupancy_resolution=0, occupancy_every=1, occupancy_threshold=0)
        cells = self.occupancy_resolution
        yield f"{prefix}.occupancy_resolution", cells, cells <= 256, "at most 256"
        background = self.background
        if isinstance(background, list):
            numbers = all(isinstance(c, (int, float)) and not isinstance(c, bool) for c in background)
            allowed = len(background) == 3 and numbers and all(0 <= c <= 1 for c in background)
        else:
            allowed = background in ("white", "random", "learned")
        yield f"{prefix}.background", background, allowed, "white, random, learned or [r, g, b] from 0 to 1"
