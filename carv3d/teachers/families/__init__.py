"""Families of pipelines, one file each: how they encode texts, and how they predict."""

from pathlib import Path
from typing import Any

from carv3d.errors import UserError
from carv3d.teachers.families.base import Family, LatentFamily, Loader, PromptEmbeddings, release, resize
from carv3d.teachers.families.deepfloyd import DeepFloyd
from carv3d.teachers.families.sd3 import StableDiffusion3
from carv3d.teachers.families.sdxl import StableDiffusionXL
from carv3d.teachers.families.stable_diffusion import StableDiffusion
from carv3d.teachers.weights import pipeline_of

FAMILIES: dict[str, type[Family]] = {
    "StableDiffusionPipeline": StableDiffusion,
    "StableDiffusionXLPipeline": StableDiffusionXL,
    "StableDiffusion3Pipeline": StableDiffusion3,
    "IFPipeline": DeepFloyd,
}
"""By the class that a folder's model_index.json names, and that a loaded pipeline is of."""


def family_of(folder: Path) -> type[Family]:
    """The family of a pipeline folder.

    Raises:
        UserError: an unknown pipeline, or a folder without model_index.json.
    """
    name = pipeline_of(folder)
    if name not in FAMILIES:
        raise UserError(f"{folder} is a {name}, which is not known; known are {', '.join(FAMILIES)}")
    return FAMILIES[name]


def family_of_pipeline(pipe: Any) -> type[Family]:
    """The family of a loaded pipeline; a subclass counts as its base class.

    Raises:
        UserError: an unknown pipeline.
    """
    for kind in type(pipe).__mro__:
        if kind.__name__ in FAMILIES:
            return FAMILIES[kind.__name__]
    raise UserError(f"a {type(pipe).__name__} is no pipeline that is known; known are {', '.join(FAMILIES)}")


__all__ = [
    "FAMILIES",
    "family_of",
    "family_of_pipeline",
    "Family",
    "LatentFamily",
    "Loader",
    "PromptEmbeddings",
    "release",
    "resize",
]
