"""The interfaces of this package: a field to extract a mesh from, and a mesh."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
Bytes = NDArray[np.uint8]

CHUNK = 2**13
"""Points a field is asked for at a time; on a CPU a hash grid is fastest at about this many."""


class Field(Protocol):
    """A field that a mesh can be extracted from: the result of `Scene.field`."""

    bound: float

    def density(self, points: Tensor) -> Tensor:
        """(N, 3) world points -> (N,) density per world unit, >= 0."""

    def query(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3) world points -> density (N,) and rgb (N, 3) in [0, 1]."""


@dataclass(frozen=True)
class Mesh:
    """Triangles with colours, in the world's axes (right-handed, z up, the front on +x).

    Attributes:
        vertices: (V, 3) world units.
        faces: (F, 3) vertex indices, counter-clockwise seen from outside.
        normals: (V, 3) unit vectors that point outwards.
        rgb: (V, 3) display (sRGB) values in [0, 1].
        uv: (V, 2) in [0, 1], v up, or None. A mesh with uv has its vertices doubled along the seams.
        texture: (H, W, 3) display values, row 0 at v = 1, or None. If there is one, it is the colour; `rgb` is then a
            coarser copy for formats without textures.
        info: how the mesh was made: threshold, density range, parts removed...
    """

    vertices: Floats
    faces: Integers
    normals: Floats
    rgb: Floats
    uv: Floats | None = None
    texture: Bytes | None = None
    info: dict[str, float] = field(default_factory=dict)


def device_of(scene: Field) -> torch.device:
    """The device of the field's parameters; the CPU if it has none."""
    parameters = scene.parameters() if isinstance(scene, torch.nn.Module) else iter(())
    return next((p.device for p in parameters), torch.device("cpu"))


def in_chunks(function: Callable[[Tensor], Tensor], points: Tensor, scene: Field, chunk: int = CHUNK) -> Tensor:
    """`function` of (N, ...) points, `chunk` of them at a time on the field's device; float32 on the CPU."""
    device = device_of(scene)
    with torch.no_grad():
        return torch.cat([function(part.to(device)).float().cpu() for part in points.split(chunk)])
