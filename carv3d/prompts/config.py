"""The config of view-dependent prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from carv3d.config.keys import Key


@dataclass
class ViewsConfig:
    """Which angles get which view words."""

    front: Annotated[float, Key("half-width of the front, degrees around azimuth 0", ge=0, le=180)] = 45.0
    back: Annotated[float, Key("half-width of the back, degrees around azimuth 180", ge=0, le=180)] = 45.0
    overhead: Annotated[float, Key("elevation above which a view is overhead, degrees", ge=-90, le=90)] = 60.0
    perp_neg: Annotated[
        bool, Key("Perp-Neg: mix the words of neighbouring views, push away from others; twice the teacher calls")
    ] = False
