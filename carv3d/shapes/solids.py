"""Signed-distance solids, of which the objects of the built-in world are made.

A solid is a function from a point, given as its three coordinate tensors `(x, y, z)` of any one shape, to the
signed distance (negative inside), in world units. Formulas: Inigo Quilez, "distance functions"
(https://iquilezles.org/articles/distfunctions/). Coordinates are separate tensors, because reductions over a last
dimension of three are slow on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Point = Sequence[Tensor]
Solid = Callable[[Point], Tensor]
Vector = tuple[float, float, float]


def _norm(*components: Tensor) -> Tensor:
    return sum(c * c for c in components).clamp_min(1e-12).sqrt()  # type: ignore[union-attr]


def _max(*values: Tensor) -> Tensor:
    result = values[0]
    for value in values[1:]:
        result = torch.maximum(result, value)
    return result


def _others(axis: int) -> tuple[int, int]:
    first, second = (i for i in range(3) if i != axis)
    return first, second


def sphere(centre: Vector, radius: float) -> Solid:
    """A ball."""
    return lambda p: _norm(*(p[i] - centre[i] for i in range(3))) - radius


def ellipsoid(centre: Vector, radii: Vector) -> Solid:
    """An axis-aligned ellipsoid (a first-order bound of the distance, exact on the surface)."""

    def distance(p: Point) -> Tensor:
        q = [p[i] - centre[i] for i in range(3)]
        k0 = _norm(*(q[i] / radii[i] for i in range(3)))
        k1 = _norm(*(q[i] / radii[i] ** 2 for i in range(3)))
        return k0 * (k0 - 1) / k1

    return distance


def box(centre: Vector, half: Vector, rounding: float = 0.02) -> Solid:
    """An axis-aligned box with rounded edges; `half` counts the rounding in."""

    def distance(p: Point) -> Tensor:
        q = [(p[i] - centre[i]).abs() - (half[i] - rounding) for i in range(3)]
        return _norm(*(c.clamp_min(0) for c in q)) + _max(*q).clamp_max(0) - rounding

    return distance


def cylinder(centre: Vector, radius: float, half_height: float, axis: int = 2) -> Solid:
    """A capped cylinder along one axis."""
    i, j = _others(axis)

    def distance(p: Point) -> Tensor:
        radial = _norm(p[i] - centre[i], p[j] - centre[j]) - radius
        axial = (p[axis] - centre[axis]).abs() - half_height
        return _max(radial, axial).clamp_max(0) + _norm(radial.clamp_min(0), axial.clamp_min(0))

    return distance


def cone(bottom: float, top: float, bottom_radius: float, top_radius: float = 0.0) -> Solid:
    """A (truncated) cone around the z axis (a lower bound of the distance outside)."""
    slope = (bottom_radius - top_radius) / (top - bottom)
    scale = (1 + slope * slope) ** -0.5

    def distance(p: Point) -> Tensor:
        side = (_norm(p[0], p[1]) - (bottom_radius - (p[2] - bottom) * slope)) * scale
        return _max(side, bottom - p[2], p[2] - top)

    return distance


def torus(centre: Vector, radius: float, tube: float, axis: int = 2) -> Solid:
    """A ring around one axis."""
    i, j = _others(axis)

    def distance(p: Point) -> Tensor:
        ring = _norm(p[i] - centre[i], p[j] - centre[j]) - radius
        return _norm(ring, p[axis] - centre[axis]) - tube

    return distance


def capsule(start: Vector, end: Vector, radius: float) -> Solid:
    """A rod with round ends."""
    rod = [end[i] - start[i] for i in range(3)]
    length2 = sum(c * c for c in rod)

    def distance(p: Point) -> Tensor:
        q = [p[i] - start[i] for i in range(3)]
        along = ((q[0] * rod[0] + q[1] * rod[1] + q[2] * rod[2]) / length2).clamp(0, 1)
        return _norm(*(q[i] - along * rod[i] for i in range(3))) - radius

    return distance


def gable(bottom: float, top: float, half_length: float, half_width: float) -> Solid:
    """A gable roof whose ridge runs along x (a lower bound of the distance outside)."""
    slope = half_width / (top - bottom)
    scale = (1 + 1 / (slope * slope)) ** -0.5

    def distance(p: Point) -> Tensor:
        side = (p[1].abs() / slope - (top - p[2])) * scale
        return _max(side, bottom - p[2], p[0].abs() - half_length)

    return distance


def minus(solid: Solid, hole: Solid) -> Solid:
    """`solid` without `hole`."""
    return lambda p: torch.maximum(solid(p), -hole(p))
