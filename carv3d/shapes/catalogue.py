"""The built-in world: its objects, its colours, and the words for them."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from carv3d.errors import UserError
from carv3d.shapes.solids import (
    Solid,
    box,
    capsule,
    cone,
    cylinder,
    ellipsoid,
    gable,
    minus,
    sphere,
    torus,
)


class Paint(IntEnum):
    """The paint of a part: MAIN is the caption's colour, the others are fixed."""

    MAIN = 0
    DARK = 1
    WOOD = 2
    PALE = 3
    ACCENT = 4


FIXED_PAINT = {
    Paint.DARK: (0.22, 0.22, 0.25),
    Paint.WOOD: (0.45, 0.28, 0.14),
    Paint.PALE: (0.93, 0.90, 0.82),
    Paint.ACCENT: (0.95, 0.55, 0.10),
}

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.12, 0.12),
    "orange": (0.96, 0.50, 0.10),
    "yellow": (0.95, 0.85, 0.15),
    "green": (0.15, 0.65, 0.20),
    "cyan": (0.20, 0.75, 0.85),
    "blue": (0.15, 0.30, 0.85),
    "purple": (0.55, 0.20, 0.70),
    "pink": (0.97, 0.55, 0.72),
    "brown": (0.50, 0.30, 0.15),
    "gray": (0.50, 0.50, 0.52),
}
_SPELLINGS = {"grey": "gray"}


@dataclass(frozen=True)
class Shape:
    """A class of objects: its parts, and its colour if the prompt names none."""

    colour: str
    parts: tuple[tuple[Solid, Paint], ...]


_M, _D, _W, _P, _A = Paint.MAIN, Paint.DARK, Paint.WOOD, Paint.PALE, Paint.ACCENT
_CORNERS = [(x, y) for x in (-1, 1) for y in (-1, 1)]

SHAPES: dict[str, Shape] = {
    "sphere": Shape("red", ((sphere((0, 0, 0), 0.7), _M),)),
    "cube": Shape("blue", ((box((0, 0, 0), (0.55, 0.55, 0.55)), _M),)),
    "cylinder": Shape("green", ((cylinder((0, 0, 0), 0.45, 0.7), _M),)),
    "cone": Shape("orange", ((cone(-0.65, 0.75, 0.65), _M),)),
    "donut": Shape("pink", ((torus((0, 0, 0), 0.52, 0.26), _M),)),
    "snowman": Shape(
        "cyan",
        (
            (sphere((0, 0, -0.4), 0.42), _M),
            (sphere((0, 0, 0.22), 0.3), _M),
            (sphere((0, 0, 0.62), 0.2), _M),
            (capsule((0.18, 0, 0.62), (0.4, 0, 0.6), 0.05), _A),
            (sphere((0.17, 0.08, 0.7), 0.045), _D),
            (sphere((0.17, -0.08, 0.7), 0.045), _D),
            (cylinder((0, 0, 0.84), 0.17, 0.09), _D),
            (cylinder((0, 0, 0.77), 0.26, 0.03), _D),
        ),
    ),
    "mushroom": Shape(
        "red",
        (
            (capsule((0, 0, -0.65), (0, 0, 0.1), 0.22), _P),
            (minus(ellipsoid((0, 0, 0.1), (0.72, 0.72, 0.55)), box((0, 0, -0.6), (2, 2, 0.7))), _M),
        ),
    ),
    "table": Shape(
        "brown",
        (
            (box((0, 0, 0.32), (0.6, 0.75, 0.08)), _M),
            *((box((x * 0.47, y * 0.61, -0.2), (0.085, 0.085, 0.48)), _M) for x, y in _CORNERS),
        ),
    ),
    "chair": Shape(
        "brown",
        (
            (box((0, 0, -0.08), (0.44, 0.44, 0.075)), _M),
            (box((-0.37, 0, 0.4), (0.075, 0.44, 0.45)), _M),
            *((box((x * 0.35, y * 0.35, -0.45), (0.08, 0.08, 0.36)), _M) for x, y in _CORNERS),
        ),
    ),
    "mug": Shape(
        "gray",
        (
            (minus(cylinder((0, 0, 0), 0.5, 0.55), cylinder((0, 0, 0.15), 0.39, 0.55)), _M),
            (torus((0, 0.52, 0), 0.28, 0.085, axis=0), _M),
        ),
    ),
    "tree": Shape(
        "green",
        (
            (cylinder((0, 0, -0.55), 0.14, 0.3), _W),
            (cone(-0.35, 0.3, 0.6, 0.15), _M),
            (cone(0.0, 0.85, 0.45), _M),
        ),
    ),
    "house": Shape(
        "yellow",
        (
            (box((0, 0, -0.25), (0.5, 0.55, 0.4)), _M),
            (gable(0.13, 0.72, 0.58, 0.68), _D),
            (box((0.5, 0, -0.4), (0.03, 0.13, 0.25)), _W),
            (box((0.5, 0.33, -0.2), (0.03, 0.11, 0.11)), _P),
            (box((0.5, -0.33, -0.2), (0.03, 0.11, 0.11)), _P),
        ),
    ),
    "rocket": Shape(
        "gray",
        (
            (ellipsoid((0, 0, 0.05), (0.32, 0.32, 0.8)), _M),
            (sphere((0.25, 0, 0.25), 0.14), _P),
            (box((0, 0.32, -0.5), (0.05, 0.2, 0.22)), _D),
            (box((0, -0.32, -0.5), (0.05, 0.2, 0.22)), _D),
            (box((-0.3, 0, -0.5), (0.2, 0.05, 0.22)), _D),
            (cylinder((0, 0, -0.72), 0.16, 0.1), _A),
        ),
    ),
    "car": Shape(
        "blue",
        (
            (box((0, 0, -0.12), (0.8, 0.4, 0.18), 0.06), _M),
            (box((-0.1, 0, 0.2), (0.42, 0.34, 0.2), 0.06), _M),
            (box((-0.1, 0, 0.2), (0.44, 0.3, 0.12)), _P),
            *((cylinder((x * 0.48, y * 0.38, -0.3), 0.21, 0.08, axis=1), _D) for x, y in _CORNERS),
            (sphere((0.78, 0.25, -0.1), 0.07), _A),
            (sphere((0.78, -0.25, -0.1), 0.07), _A),
        ),
    ),
    "cactus": Shape(
        "green",
        (
            (capsule((0, 0, -0.5), (0, 0, 0.6), 0.2), _M),
            (capsule((0, 0, 0), (0, 0.5, 0), 0.13), _M),
            (capsule((0, 0.5, 0), (0, 0.5, 0.4), 0.13), _M),
            (capsule((0, 0, -0.2), (0, -0.45, -0.2), 0.11), _M),
            (capsule((0, -0.45, -0.2), (0, -0.45, 0.15), 0.11), _M),
            (cone(-0.85, -0.45, 0.3, 0.4), _A),
        ),
    ),
    "duck": Shape(
        "yellow",
        (
            (ellipsoid((-0.05, 0, -0.25), (0.62, 0.42, 0.38)), _M),
            (sphere((0.32, 0, 0.3), 0.28), _M),
            (ellipsoid((0.64, 0, 0.25), (0.17, 0.12, 0.07)), _A),
            (sphere((0.52, 0.14, 0.4), 0.05), _D),
            (sphere((0.52, -0.14, 0.4), 0.05), _D),
            (ellipsoid((-0.62, 0, -0.05), (0.16, 0.12, 0.22)), _M),
        ),
    ),
}

_FILLERS = {"a", "an", "the"}


@dataclass(frozen=True)
class Thing:
    """An object of the world: a shape in a colour."""

    shape: str
    colour: str

    @property
    def caption(self) -> str:
        """The object's prompt, such as "a red chair"."""
        return f"{'an' if self.colour[0] in 'aeiou' else 'a'} {self.colour} {self.shape}"


ALL_THINGS = tuple(Thing(shape, colour) for shape in SHAPES for colour in COLOURS)


def vocabulary() -> str:
    """One sentence that lists all words of the world."""
    return f"objects: {', '.join(SHAPES)}; colours: {', '.join(COLOURS)}"


def parse(prompt: str) -> Thing:
    """The object that a prompt names: a shape, with or without a colour.

    Raises:
        UserError: an unknown word, no shape, or several shapes or colours.
    """
    words = [_SPELLINGS.get(w, w) for w in re.findall(r"[a-z]+", prompt.lower())]
    unknown = [w for w in words if w not in SHAPES and w not in COLOURS and w not in _FILLERS]
    shapes = [w for w in words if w in SHAPES]
    colours = [w for w in words if w in COLOURS]
    if unknown:
        close = difflib.get_close_matches(unknown[0], [*SHAPES, *COLOURS], n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise UserError(
            f"the built-in teacher does not know {', '.join(map(repr, unknown))}{hint}; "
            f"it knows {vocabulary()}. Use --force to go on all the same"
        )
    if len(shapes) != 1 or len(colours) > 1:
        raise UserError(
            f"the built-in teacher makes one object in one colour, such as 'a red chair', and {prompt!r} names "
            f"{len(shapes)} objects and {len(colours)} colours; it knows {vocabulary()}. "
            "Use --force to go on all the same"
        )
    return Thing(shapes[0], colours[0] if colours else SHAPES[shapes[0]].colour)


def palette(colour: str) -> Tensor:
    """(5, 3) rgb in [0, 1] of each `Paint`, for an object of this colour."""
    return torch.tensor([COLOURS[colour], *(FIXED_PAINT[p] for p in Paint if p is not Paint.MAIN)])
