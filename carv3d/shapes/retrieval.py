"""Retrieval: the object of the built-in world whose true picture is nearest to a picture."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from carv3d.cameras import Cameras
from carv3d.shapes.catalogue import ALL_THINGS, COLOURS, SHAPES, Thing, palette
from carv3d.shapes.reference import colourise, shade_maps

_KEPT_VIEWS = 16  # pictures of all 160 objects from so many cameras take 130 MB at 64 x 64 pixels


class Gallery:
    """The true pictures of all objects in all colours from V cameras."""

    def __init__(self, cameras: Cameras) -> None:
        """Render the world: about a second for four cameras."""
        self.cameras = cameras
        self._maps = {shape: shade_maps(shape, cameras) for shape in SHAPES}
        self._kept: dict[Thing, Tensor] = {}

    def truth(self, thing: Thing) -> Tensor:
        """An object's pictures (V, 3, H, W) in [0, 1], on white."""
        found = self._kept.get(thing)
        if found is None:
            found = colourise(self._maps[thing.shape], palette(thing.colour))
            if len(self.cameras) <= _KEPT_VIEWS:
                self._kept[thing] = found
        return found

    def opacity(self, thing: Thing) -> Tensor:
        """An object's silhouettes (V, 1, H, W) in [0, 1]."""
        return self._maps[thing.shape][:, -1:]

    def picture(self, thing: Thing, camera: int) -> Tensor:
        """An object's picture (3, H, W) from one of the cameras."""
        return colourise(self._maps[thing.shape][camera : camera + 1], palette(thing.colour))[0]

    def errors(self, pictures: Tensor) -> Tensor:
        """Mean squared errors (things, V) of pictures (V, 3, H, W) to every object, from the same cameras."""
        return torch.stack([(self.truth(thing) - pictures).square().mean((1, 2, 3)) for thing in ALL_THINGS])

    def nearest(self, pictures: Tensor) -> list[Thing]:
        """The object nearest to each of V pictures (V, 3, H, W), seen by the same camera."""
        return [ALL_THINGS[i] for i in self.errors(pictures).argmin(0).tolist()]

    def nearest_anywhere(self, pictures: Tensor, pooled: int = 4) -> tuple[list[Thing], Tensor]:
        """The object nearest to each picture from any of the V cameras, and the mean squared error to it.

        For pictures whose camera is not known. Pictures are compared after averaging over squares of pixels, since
        the nearest of V cameras is still some degrees off.

        Args:
            pictures: (N, 3, H, W).
            pooled: pixels along a side of the squares.

        Returns:
            N objects, and (N,) errors.
        """
        small = F.avg_pool2d(pictures, pooled).flatten(1)
        distances = [torch.cdist(small, F.avg_pool2d(self.truth(t), pooled).flatten(1)).amin(1) for t in ALL_THINGS]
        distance, which = torch.stack(distances).min(0)
        return [ALL_THINGS[i] for i in which.tolist()], distance.square() / small.shape[1]


def assorted() -> list[Thing]:
    """Every class in three colours, 48 objects, for the evaluation of teachers and generators."""
    colours = list(COLOURS)
    return [Thing(s, colours[(3 * i + 4 * j) % len(colours)]) for i, s in enumerate(SHAPES) for j in range(3)]
