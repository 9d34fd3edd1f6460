"""Meshes: a scene's surface as triangles with colours, in files that other programs open.

`extract` finds the surface and its vertex colours, `bake_texture` adds a UV map and a texture, `save` and `load`
write and read GLB, OBJ and PLY. `carv3d.renderers.mesh` draws a mesh.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # names and modules: __init__.pyi
