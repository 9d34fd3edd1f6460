"""Meshes: a scene's surface as triangles with colours, in files that other programs open.

`extract` finds the surface and its vertex colours, `bake_texture` adds a UV map and a texture, `save` and `load`
write and read GLB, OBJ and PLY. `carv3d.renderers.mesh` draws a mesh.
"""

from carv3d.mesh.base import Field, Mesh
from carv3d.mesh.files import FORMATS, load, save
from carv3d.mesh.isosurface import extract
from carv3d.mesh.texture import bake_texture

__all__ = ["FORMATS", "Field", "Mesh", "bake_texture", "extract", "load", "save"]
