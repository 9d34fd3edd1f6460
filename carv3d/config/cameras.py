"""The section of carv3d's own camera sampler. A plug-in's has keys of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from carv3d.config.rules import Rule, at_least
from carv3d.config.section import Context, Section


@dataclass
class Cameras(Section):
    """Where training renders are taken from; each pair is (low, high), each value in it as likely."""

    type: Literal["uniform"] = "uniform"
    order: Literal["independent", "sequence"] = "sequence"  # sequence: angles that fill their ranges evenly

    azimuth: list[float] = field(default_factory=lambda: [-180.0, 180.0])  # degrees, 0 sees the front
    elevation: list[float] = field(default_factory=lambda: [-10.0, 80.0])  # degrees above the horizon
    distance: list[float] = field(default_factory=lambda: [3.0, 3.0])  # world units
    fov: list[float] = field(default_factory=lambda: [40.0, 40.0])  # degrees, vertical
    height: int = 64  # pixels
    width: int = 64  # pixels

    def build(self, context: Context) -> Any:
        """See `Section`."""
        from carv3d.cameras import CameraSampler, SequenceSampler

        ranges = {key: tuple(getattr(self, key)) for key in ("azimuth", "elevation", "distance", "fov")}
        if self.order == "sequence":
            return SequenceSampler(**ranges, height=self.height, width=self.width, seed=context.config.seed)
        return CameraSampler(**ranges, height=self.height, width=self.width)

    def independent(self) -> Cameras:
        """The same distribution of each camera, with independent ones: what plain methods have."""
        return replace(self, order="independent")

    def rules(self, prefix: str) -> Iterator[Rule]:
        """See `Section`."""
        ranges = {
            "azimuth": (lambda low, high: high - low <= 360, "[low, high] degrees, at most 360 apart"),
            "elevation": (lambda low, high: low > -90 and high < 90, "[low, high] degrees between -90 and 90"),
            "distance": (lambda low, high: low > 0, "[low, high] world units greater than 0"),
            "fov": (lambda low, high: low > 0 and high < 180, "[low, high] degrees between 0 and 180"),
        }
        for key, (inside, what) in ranges.items():
            value = getattr(self, key)
            allowed = len(value) == 2 and value[0] <= value[1] and inside(*value)
            yield f"{prefix}.{key}", value, allowed, what
        yield from at_least(self, prefix, height=1, width=1)
