"""What is optimised: fields that give a density and a colour at every point."""

from carv3d.scenes.base import Scene
from carv3d.scenes.hash_grid import HashGrid
from carv3d.scenes.voxel_grid import VoxelGrid

__all__ = ["HashGrid", "Scene", "VoxelGrid"]
