"""Waits of the host for the device, and copies between them, with the line of the program that causes them."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Literal

Kind = Literal["wait", "copy to device", "copy to host"]


class Recorder:
    """What was noted while it was entered.

    Attributes:
        events: how often, by kind, operation, and file:line of the innermost frame in the program.
    """

    def __init__(self, program: str) -> None:
        self.program, self.events = program, Counter[tuple[Kind, str, str]]()

    def count(self, kind: Kind) -> int:
        """How often."""
        return sum(n for (of, *_), n in self.events.items() if of == kind)

    def table(self) -> str:
        """A line each, for messages."""
        return "\n".join(f"{n:5d} {kind}: {what} at {place}" for (kind, what, place), n in sorted(self.events.items()))


_active: list[Recorder] = []


@contextmanager
def record(program: str) -> Iterator[Recorder]:
    """Note what happens in a with block.

    Args:
        program: a folder; frames of its files are named.
    """
    recorder = Recorder(program)
    _active.append(recorder)
    try:
        yield recorder
    finally:
        _active.remove(recorder)


def note(kind: Kind, what: str) -> None:
    """Tell the recorders, if there are any."""
    for recorder in _active:
        recorder.events[kind, what, _place(recorder.program)] += 1


def _place(program: str) -> str:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(program):
            return f"{name.removeprefix(program).lstrip('/')}:{frame.f_lineno}"
        frame = frame.f_back
    return "(autograd)"
