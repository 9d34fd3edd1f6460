"""The config of carv3d's own camera samplers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Literal

from carv3d.config.components import Context
from carv3d.config.keys import Key
from carv3d.config.values import Rule

if TYPE_CHECKING:
    from carv3d.cameras.samplers import CameraSampler


@dataclass
class CameraConfig:
    """Where training renders are taken from; angles, distances and fields of view are uniform in [low, high]."""

    type: Literal["uniform"] = "uniform"
    order: Annotated[
        Literal["independent", "sequence"], Key("sequence: the angles of successive cameras fill their ranges evenly")
    ] = "sequence"

    azimuth: Annotated[
        list[float], Key("degrees, 0 sees the front", length=2, allowed="[low, high] degrees, at most 360 apart")
    ] = field(default_factory=lambda: [-180.0, 180.0])
    elevation: Annotated[
        list[float],
        Key("degrees above the horizon", gt=-90, lt=90, length=2, allowed="[low, high] degrees between -90 and 90"),
    ] = field(default_factory=lambda: [-10.0, 80.0])
    distance: Annotated[
        list[float], Key("world units", gt=0, length=2, allowed="[low, high] world units greater than 0")
    ] = field(default_factory=lambda: [3.0, 3.0])
    fov: Annotated[
        list[float],
        Key("vertical field of view, degrees", gt=0, lt=180, length=2, allowed="[low, high] degrees between 0 and 180"),
    ] = field(default_factory=lambda: [40.0, 40.0])
    height: Annotated[int, Key("pixels", ge=1, le=4_096)] = 64
    width: Annotated[int, Key("pixels", ge=1, le=4_096)] = 64

    def build(self, context: Context) -> CameraSampler:
        """The sampler."""
        from carv3d.cameras.samplers import CameraSampler, SequenceSampler

        return SequenceSampler(self, context.config.seed) if self.order == "sequence" else CameraSampler(self)

    def independent(self) -> CameraConfig:
        """The same distribution of each camera, with independent cameras."""
        return replace(self, order="independent")

    def rules(self, prefix: str) -> Iterator[Rule]:
        """Ranges are in order."""
        for key in ("azimuth", "elevation", "distance", "fov"):
            low, high = getattr(self, key)
            yield f"{prefix}.{key}", [low, high], low <= high, "[low, high], in order"
        low, high = self.azimuth
        yield f"{prefix}.azimuth", self.azimuth, high - low <= 360, "[low, high] degrees, at most 360 apart"
