"""Mesh files: writing and reading GLB, OBJ and PLY.

| file | axes                                                      | colours                    |
|------|-----------------------------------------------------------|----------------------------|
| .glb | y up, front towards +z: glTF's convention                 | texture, or vertex colours |
| .obj | y up, front towards +z: what importers take an OBJ to be  | texture, or vertex colours |
| .ply | z up, front towards +x: the world's axes                  | vertex colours             |

A textured OBJ comes with an .mtl and a .png of the same name.
Materials are matt: metallic 0, roughness 1. Textures, OBJ and PLY hold display (sRGB) values as they are;
glTF defines its vertex colours as linear light, so those are converted, and stored as floats because eight
bits of linear light show steps in dark colours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh
from PIL import Image
from trimesh.exchange.gltf import export_glb
from trimesh.exchange.obj import export_obj
from trimesh.exchange.ply import export_ply
from trimesh.visual import ColorVisuals, TextureVisuals
from trimesh.visual.material import PBRMaterial, SimpleMaterial

from carv3d.errors import UserError
from carv3d.mesh.base import Floats, Mesh
from carv3d.mesh.raster import sample_texture
from carv3d.runs.storage import disk_errors, replace_files

WORLD_TO_Y_UP = np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]], np.float32)
"""World y, z, x become file x, y, z: a rotation that stands the object up and turns its front to +z."""

_ATTRIBUTES, _INDICES = 34962, 34963  # glTF's names for buffers of vertices and of triangles


def save(
    mesh: Mesh,
    folder: Path | str,
    formats: Sequence[str] = ("glb",),
    name: str = "mesh",
    others: Mapping[str, bytes] | None = None,
) -> list[Path]:
    """Write the mesh as `folder/name.<format>`, with its texture if it has one.

    An error, or a kill at any moment, never leaves files of two exports beside each other; see `replace_files`.

    Args:
        mesh: what to write.
        folder: made if it is not there.
        formats: some of "glb", "obj", "ply".
        name: the files' name without ending.
        others: more files of the same export, by name.

    Returns:
        The files written, those of each format with its main file last.

    Raises:
        UserError: an unknown format; the disk is full, or may not be written to.
    """
    unknown = [kind for kind in formats if kind not in _WRITERS]
    if unknown:
        raise UserError(f"unknown mesh format {unknown[0]!r}; use one of {', '.join(FORMATS)}")
    contents = {file: data for kind in formats for file, data in _WRITERS[kind](mesh, name).items()}
    contents |= others or {}
    folder = Path(folder)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    replace_files(folder, contents)
    return [folder / file for file in contents]


def load(path: Path | str) -> Mesh:
    """Read a mesh that `save` wrote, back into the world's axes and display colours.

    Raises:
        UserError: no such file, not one of the formats, or a damaged one.
    """
    path = Path(path)
    kind = path.suffix.lower().lstrip(".")
    if kind not in _WRITERS:
        raise UserError(f"cannot read {path.name} as a mesh; use one that ends in {', '.join(FORMATS)}")
    if not path.is_file():
        raise UserError(f"there is no mesh {path}; check the path, or export the mesh first")
    try:
        return _loaded(path, kind)
    except Exception as error:  # trimesh and Pillow raise what a damaged file leads to
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"{path} cannot be read as a mesh ({reason}): export it again") from error


def _loaded(path: Path, kind: str) -> Mesh:
    # Not force="mesh": joining a scene into one mesh recomputes the normals and drops linear vertex colours.
    [loaded] = trimesh.load_scene(path, process=False, maintain_order=True).geometry.values()
    rotation = np.eye(3, dtype=np.float32) if kind == "ply" else WORLD_TO_Y_UP
    uv, texture = None, None
    visual = loaded.visual
    if isinstance(visual, ColorVisuals):
        rgb: Floats = np.array(visual.vertex_colors[:, :3], np.float32) / np.float32(255)
    elif "color" in visual.vertex_attributes:
        rgb = _from_linear(np.array(visual.vertex_attributes["color"], np.float32)[:, :3])
    else:
        material = visual.material
        image = material.baseColorTexture if isinstance(material, PBRMaterial) else material.image
        texture = np.array(image.convert("RGB"))
        uv = np.array(visual.uv, np.float32)
        rgb = sample_texture(torch.from_numpy(texture.astype(np.float32) / 255), torch.from_numpy(uv)).numpy()
    return Mesh(
        vertices=np.array(loaded.vertices, np.float32) @ rotation,
        faces=np.array(loaded.faces, np.int64),
        normals=np.array(loaded.vertex_normals, np.float32) @ rotation,
        rgb=rgb,
        uv=uv,
        texture=texture,
    )


def _triangles(mesh: Mesh, visual: Any, rotation: Floats) -> trimesh.Trimesh:
    return trimesh.Trimesh(
        mesh.vertices @ rotation.T,
        mesh.faces,
        vertex_normals=mesh.normals @ rotation.T,
        visual=visual,
        process=False,
    )


def _glb(mesh: Mesh, name: str) -> dict[str, bytes]:
    image = None if mesh.texture is None else Image.fromarray(mesh.texture)
    # A mesh without a material gets glTF's default, which is metallic.
    material = PBRMaterial(name=name, baseColorTexture=image, metallicFactor=0.0, roughnessFactor=1.0)
    surface = _triangles(mesh, TextureVisuals(uv=mesh.uv, material=material), WORLD_TO_Y_UP)
    if image is None:
        # trimesh would store eight bits of linear light. So floats are passed under another name, which is changed
        # later.
        surface.vertex_attributes["_linear"] = _to_linear(mesh.rgb)

    def finish(tree: dict[str, Any]) -> None:
        for part in tree["meshes"]:
            for primitive in part["primitives"]:
                attributes = primitive["attributes"]
                if "_linear" in attributes:
                    attributes["COLOR_0"] = attributes.pop("_linear")
                # The target of each buffer, which viewers may need (glTF 2.0, section 3.6.2.2).
                accessors = [(primitive["indices"], _INDICES), *((a, _ATTRIBUTES) for a in attributes.values())]
                for accessor, target in accessors:
                    tree["bufferViews"][tree["accessors"][accessor]["bufferView"]]["target"] = target

    scene = trimesh.Scene()
    scene.add_geometry(surface, geom_name=name)
    return {f"{name}.glb": export_glb(scene, include_normals=True, tree_postprocessor=finish)}


def _obj(mesh: Mesh, name: str) -> dict[str, bytes]:
    if mesh.texture is None:
        visual: Any = _vertex_colours(mesh)
    else:
        white, black = [255, 255, 255, 255], [0, 0, 0, 255]
        material = SimpleMaterial(
            image=Image.fromarray(mesh.texture), diffuse=white, ambient=white, specular=black, name=name
        )
        visual = TextureVisuals(uv=mesh.uv, material=material)
    text, companions = export_obj(
        _triangles(mesh, visual, WORLD_TO_Y_UP),
        include_normals=True,
        return_texture=True,
        mtl_name=f"{name}.mtl",
        header=None,
    )
    return {**companions, f"{name}.obj": text.encode()}


def _ply(mesh: Mesh, name: str) -> dict[str, bytes]:
    surface = _triangles(mesh, _vertex_colours(mesh), np.eye(3, dtype=np.float32))
    # Without a texture, the doubled vertices along the seams would only open the surface.
    surface.merge_vertices(merge_tex=True, merge_norm=True)
    return {f"{name}.ply": export_ply(surface)}


def _vertex_colours(mesh: Mesh) -> ColorVisuals:
    return ColorVisuals(vertex_colors=np.rint(255 * mesh.rgb).astype(np.uint8))


def _to_linear(rgb: Floats) -> Floats:
    """Display values to linear light (IEC 61966-2-1)."""
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4).astype(np.float32)


def _from_linear(light: Floats) -> Floats:
    """Linear light to display values."""
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055).astype(np.float32)


_WRITERS: dict[str, Callable[[Mesh, str], dict[str, bytes]]] = {"glb": _glb, "obj": _obj, "ply": _ply}
FORMATS = tuple(_WRITERS)
