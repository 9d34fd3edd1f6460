"""The colours of a surface: vertex colours, or a texture."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import xatlas
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from carv3d.mesh.base import CHUNK, Bytes, Field, Floats, Mesh, in_chunks
from carv3d.mesh.raster import cover

# The short ray of a colour, as fractions of the bound, positive inside.
RAY_START, RAY_END, RAY_SAMPLES = -0.08, 0.2, 12


def surface_rgb(scene: Field, points: Floats, normals: Floats) -> Floats:
    """The colours of surface points, seen along the normal. In a soft field the visible colour comes from a layer. So
    each colour is volume-rendered along a short ray that enters the surface against its normal.

    Args:
        scene: the field.
        points: (N, 3) on the surface, world units.
        normals: (N, 3) unit vectors, outwards.

    Returns:
        (N, 3) in [0, 1].
    """
    step = (RAY_END - RAY_START) * scene.bound / RAY_SAMPLES
    depths = RAY_START * scene.bound + step * (torch.arange(RAY_SAMPLES) + 0.5)

    def gather(rays: Tensor) -> Tensor:
        point, normal = rays[:, None, :3], rays[:, None, 3:]
        samples = point - depths.to(rays.device)[:, None] * normal
        density, rgb = scene.query(samples.reshape(-1, 3))
        optical = density.reshape(-1, RAY_SAMPLES) * step
        # Where the field is empty, the smallest positive weight gives the mean of the ray instead of 0 / 0.
        weights = torch.exp(optical - optical.cumsum(1)) * -torch.expm1(-optical) + 1e-8
        weights = weights / weights.sum(1, keepdim=True)
        return (weights[..., None] * rgb.reshape(-1, RAY_SAMPLES, 3)).sum(1)

    rays = torch.from_numpy(np.concatenate([points, normals], 1))
    return in_chunks(gather, rays, scene, CHUNK // RAY_SAMPLES).clamp(0, 1).numpy()


def bake_texture(mesh: Mesh, scene: Field, size: int = 512) -> Mesh:
    """The mesh with a UV map and a texture of the field's colours.

    Args:
        mesh: from `extract`.
        scene: the field it was extracted from.
        size: width and height of the texture in texels. 512 is as fine as 128 cells a side; four times the
            time buys 1024.
    """
    atlas = xatlas.Atlas()
    # Scaled up, because xatlas leaves out triangles of less than 1e-7 square units.
    atlas.add_mesh(mesh.vertices * (100 / scene.bound), mesh.faces.astype(np.uint32), mesh.normals)
    pack = xatlas.PackOptions()
    pack.resolution, pack.padding = size, max(2, size // 256)
    atlas.generate(pack_options=pack)
    source, faces, uv = atlas.get_mesh(0)
    faces = faces.astype(np.int64)
    mesh = replace(
        mesh,
        vertices=mesh.vertices[source],
        faces=faces,
        normals=mesh.normals[source],
        rgb=mesh.rgb[source],
        # xatlas counts v from the top row of the texture.
        uv=np.stack([uv[:, 0], 1 - uv[:, 1]], -1),
    )
    face, texel, weights = cover(torch.from_numpy(uv[faces] * size), size, size)
    corners = faces[face.numpy()]
    # The texels of vertices come first, for triangles without a texel's centre.
    column, row = (uv * size).astype(np.int64).clip(0, size - 1).T
    texels = np.concatenate([row * size + column, texel.numpy()])
    points = np.concatenate([mesh.vertices, _blend(weights.numpy(), mesh.vertices[corners])])
    normals = np.concatenate([mesh.normals, _blend(weights.numpy(), mesh.normals[corners])])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True).clip(1e-6)
    texture = np.zeros((size * size, 3), np.uint8)
    texture[texels] = np.rint(255 * surface_rgb(scene, points, normals))
    filled = np.zeros(size * size, bool)
    filled[texels] = True
    return replace(mesh, texture=_fill_gutters(texture.reshape(size, size, 3), filled.reshape(size, size)))


def _blend(weights: Floats, corners: Floats) -> Floats:
    """(P, 3) barycentric weights of (P, 3, C) values at the corners -> (P, C)."""
    blended: Floats = np.einsum("pk,pkc->pc", weights, corners)
    return blended


def _fill_gutters(texture: Bytes, filled: NDArray[np.bool_]) -> Bytes:
    """Give every empty texel the colour of the nearest filled one, because filtering blends neighbouring texels."""
    rows, columns = ndimage.distance_transform_edt(~filled, return_distances=False, return_indices=True)
    return np.ascontiguousarray(texture[rows, columns])
