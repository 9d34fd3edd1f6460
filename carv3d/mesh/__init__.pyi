from .base import Field as Field
from .base import Mesh as Mesh
from .files import FORMATS as FORMATS
from .files import load as load
from .files import save as save
from .isosurface import extract as extract
from .texture import bake_texture as bake_texture
