"""The built-in world: objects with a known true form, for the built-in teacher and for measuring quality."""

from carv3d.shapes.catalogue import ALL_THINGS, COLOURS, SHAPES, Thing, palette, parse, vocabulary
from carv3d.shapes.reference import colourise, reference, shade_maps
from carv3d.shapes.retrieval import Gallery, assorted
from carv3d.shapes.training_set import training_views

__all__ = [
    "ALL_THINGS",
    "COLOURS",
    "SHAPES",
    "Gallery",
    "Thing",
    "assorted",
    "colourise",
    "palette",
    "parse",
    "reference",
    "shade_maps",
    "training_views",
    "vocabulary",
]
