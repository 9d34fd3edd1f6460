"""A value that changes in the course of a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Ramp:
    """A value that moves linearly over a part of the run."""

    first: float = 0.0  # value up to `begin`
    last: float = 0.0  # value from `end` on
    begin: float = 0.0  # fraction of the run, 0 to 1
    end: float = 1.0  # fraction of the run, 0 to 1

    def at(self, progress: float) -> float:
        """The value at a fraction of the run, 0 to 1. With begin = end it jumps there."""
        if progress >= self.end:
            return self.last
        if progress <= self.begin:
            return self.first
        return self.first + (self.last - self.first) * (progress - self.begin) / (self.end - self.begin)


def constant(value: float) -> Ramp:
    """The same value for the whole run."""
    return Ramp(value, value)
