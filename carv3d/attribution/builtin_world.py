"""The training set of the built-in teacher, or a reproducible part of it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from carv3d.attribution.pictures import Pictures, digest_of
from carv3d.cameras import Cameras, joined
from carv3d.prompts.views import VIEWS, ViewPrompts
from carv3d.shapes import COLOURS, Thing, colourise, palette, shade_maps, training_views
from carv3d.teachers.camera_conditioning import camera_vector


class BuiltinWorld(Pictures):
    """See `Pictures`. Pictures are rendered on demand; `classes` are the objects' shapes.

    Attributes:
        things: N, the object of every picture.
        total: how many pictures the teacher was trained on.
    """

    def __init__(self, count: int, seed: int) -> None:
        """Choose uniformly without replacement.

        Args:
            count: how many; 0, or as many as there are: all.
            seed: of the choice.
        """
        batches: dict[str, list[Cameras]] = {}
        for shape, cameras in training_views():
            batches.setdefault(shape, []).append(cameras)
        self._cameras = {shape: joined(parts) for shape, parts in batches.items()}
        colours, shapes = list(COLOURS), list(self._cameras)
        self._a_shape = len(self._cameras[shapes[0]])
        self.total = len(shapes) * self._a_shape * len(colours)
        chosen = torch.randperm(self.total, generator=torch.Generator().manual_seed(seed))[: count or self.total]
        chosen = chosen.sort().values
        view, colour = chosen.div(len(colours), rounding_mode="floor"), chosen % len(colours)
        self._view = view.tolist()
        self.source = f"{len(chosen):,} of the {self.total:,} pictures that the built-in teacher was trained on"
        self.things = [
            Thing(shapes[v // self._a_shape], colours[c]) for v, c in zip(self._view, colour.tolist(), strict=True)
        ]
        self.classes = [thing.shape for thing in self.things]
        self.names = [f"{thing.shape}-{v}-{thing.colour}" for v, thing in zip(self._view, self.things, strict=True)]
        every = joined(list(self._cameras.values()))
        azimuth, elevation = every.azimuth[view], every.elevation[view]
        self.camera = camera_vector(azimuth, elevation)
        words = ViewPrompts().index(azimuth, elevation).tolist()
        # In training three captions of ten had no view words; the more frequent form is used here.
        self.captions = [f"{thing.caption}, {VIEWS[w]}" for thing, w in zip(self.things, words, strict=True)]

    def load(self, rows: Sequence[int]) -> Tensor:
        """See `Pictures`; 64 x 64, rounded as in training."""
        found: dict[int, Tensor] = {}
        order = sorted(rows, key=lambda row: self._view[row])
        for shape, group in groupby(order, key=lambda row: self.things[row].shape):
            members = list(group)
            views = sorted({self._view[row] for row in members})
            maps = _rounded_maps(shape, self._cameras[shape][torch.tensor([v % self._a_shape for v in views])])
            for row in members:
                one = maps[views.index(self._view[row])][None]
                found[row] = colourise(one, palette(self.things[row].colour))[0]
        return torch.stack([found[row] for row in rows])

    def digest(self) -> str:
        """See `Pictures`."""
        return digest_of(self, "built-in world")


def _rounded_maps(shape: str, cameras: Cameras) -> Tensor:
    """Round as in training, where shade maps were stored as bytes."""
    return shade_maps(shape, cameras).mul(255).round() / 255
