from .base import Footprints as Footprints
from .base import RadianceField as RadianceField
from .base import Scene as Scene
from .base import Succession as Succession
from .gaussians import Gaussians as Gaussians
from .hash_grid import HashGrid as HashGrid
from .voxel_grid import VoxelGrid as VoxelGrid
