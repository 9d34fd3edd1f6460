from .base import ImageProjection as ImageProjection
from .base import RadianceField as RadianceField
from .base import RowMap as RowMap
from .base import Scene as Scene
from .gaussians import Gaussians as Gaussians
from .hash_grid import HashGrid as HashGrid
from .voxel_grid import VoxelGrid as VoxelGrid
