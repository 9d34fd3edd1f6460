"""What is optimised: fields that give a density and a colour at every point, and clouds of Gaussians."""

from carv3d.scenes.base import Footprints, RadianceField, Scene, Succession
from carv3d.scenes.densification import Densification
from carv3d.scenes.gaussians import Gaussians
from carv3d.scenes.hash_grid import HashGrid
from carv3d.scenes.voxel_grid import VoxelGrid

__all__ = [
    "Densification",
    "Footprints",
    "Gaussians",
    "HashGrid",
    "RadianceField",
    "Scene",
    "Succession",
    "VoxelGrid",
]
