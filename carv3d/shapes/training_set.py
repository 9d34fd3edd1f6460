"""The training pictures of the built-in teacher, reproduced."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from carv3d.cameras import Cameras, CameraSampler
from carv3d.cameras.config import CameraConfig
from carv3d.shapes.catalogue import SHAPES

VIEWS_A_SHAPE = 400
VIEWS_A_BATCH = 20


def training_views(views: int = VIEWS_A_SHAPE) -> Iterator[tuple[str, Cameras]]:
    """The random cameras of every shape, in batches of 20, as in the teacher's training. Each view was coloured in
    all colours of `COLOURS`: with 400 views, 16 x 400 x 10 = 64,000 pictures.

    Args:
        views: of each shape, a multiple of 20.
    """
    generator = torch.Generator().manual_seed(0)
    for shape in SHAPES:
        for _ in range(views // VIEWS_A_BATCH):
            yield shape, CameraSampler(CameraConfig()).sample(VIEWS_A_BATCH, generator)
