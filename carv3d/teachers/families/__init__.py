"""Families of pipelines, one file each: how they are told a text, and how they predict."""

from carv3d.teachers.families.base import Family, LatentFamily, Loader, Words, release, resize
from carv3d.teachers.families.deepfloyd import DeepFloyd
from carv3d.teachers.families.sd3 import StableDiffusion3
from carv3d.teachers.families.sdxl import StableDiffusionXL
from carv3d.teachers.families.stable_diffusion import StableDiffusion

FAMILIES: dict[str, type[Family]] = {
    "StableDiffusionPipeline": StableDiffusion,
    "StableDiffusionXLPipeline": StableDiffusionXL,
    "StableDiffusion3Pipeline": StableDiffusion3,
    "IFPipeline": DeepFloyd,
}
"""By the class that a folder's model_index.json names."""

__all__ = ["FAMILIES", "Family", "LatentFamily", "Loader", "Words", "release", "resize"]
