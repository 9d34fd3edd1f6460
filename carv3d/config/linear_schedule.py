"""A value that changes linearly in the course of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from carv3d.config.keys import Key


@dataclass(frozen=True)
class LinearSchedule:
    """`first` until `begin`, `last` from `end` on, linear in between. In a config one number stands for a constant."""

    first: Annotated[float, Key("value until begin")] = 0.0
    last: Annotated[float, Key("value from end on")] = 0.0
    begin: Annotated[float, Key("fraction of the run", ge=0, le=1)] = 0.0
    end: Annotated[float, Key("fraction of the run", ge=0, le=1)] = 1.0

    def at(self, progress: float) -> float:
        """The value at a fraction of the run, 0 to 1. With begin = end the value jumps there."""
        if progress >= self.end:
            return self.last
        if progress <= self.begin:
            return self.first
        return self.first + (self.last - self.first) * (progress - self.begin) / (self.end - self.begin)

    @property
    def lowest(self) -> float:
        """The smallest value of the run."""
        return min(self.first, self.last)

    @property
    def highest(self) -> float:
        """The largest value of the run."""
        return max(self.first, self.last)

    def __str__(self) -> str:
        return repr(self.first) if self.first == self.last else f"{self.first} to {self.last}"


def constant(value: float) -> LinearSchedule:
    """The same value for the whole run."""
    return LinearSchedule(value, value)
