"""Values that change over a run."""

from __future__ import annotations

from carv3d.config.schema import Ramp


def value(ramp: Ramp, fraction: float) -> float:
    """The ramp's value when `fraction` of the run (0 to 1) is done: linear from `begin` to `end`, flat outside."""
    if fraction <= ramp.begin:
        return ramp.first
    if fraction >= ramp.end:
        return ramp.last
    return ramp.first + (ramp.last - ramp.first) * (fraction - ramp.begin) / (ramp.end - ramp.begin)
