"""Meshes: a scene's surface as triangles with colours, in files that other programs open::

mesh = extract(scene)  # isosurface, threshold found by itself, vertex colours
mesh = bake_texture(mesh, scene)  # optional: UV map and texture
save(mesh, folder, ["glb", "obj", "ply"])
"""

from carv3d.mesh.base import Field, Mesh
from carv3d.mesh.files import FORMATS, load, save
from carv3d.mesh.isosurface import extract
from carv3d.mesh.texture import bake_texture

__all__ = ["FORMATS", "Field", "Mesh", "bake_texture", "extract", "load", "save"]
