"""Meshes as images: a small z-buffer in plain torch, for evaluation and previews."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from carv3d.cameras import Cameras
from carv3d.mesh.base import Mesh
from carv3d.mesh.raster import cover, sample_texture

NEAR = 1e-3


class MeshRender(NamedTuple):
    """Images of a mesh.

    Attributes:
        rgb: (R, 3, H, W) unlit colours over the background, display values in [0, 1].
        opacity: (R, 1, H, W) the silhouette, 1 on the mesh; fractions only where `supersample` > 1.
    """

    rgb: Tensor
    opacity: Tensor


def render_mesh(
    mesh: Mesh,
    cameras: Cameras,
    *,
    background: tuple[float, float, float] = (1.0, 1.0, 1.0),
    supersample: int = 1,
) -> MeshRender:
    """Render a mesh in its own colours, without light: its texture if it has one, else its vertex colours.

    Triangles that reach behind a camera are left out.

    Args:
        mesh: what to draw.
        cameras: R views of it; images are drawn on their device.
        background: colour where there is no mesh.
        supersample: draw this many times larger and average, which softens the edges.
    """
    device = cameras.c2w.device
    vertices, faces = torch.from_numpy(mesh.vertices).to(device), torch.from_numpy(mesh.faces).to(device)
    if mesh.texture is None or mesh.uv is None:
        texture, values = None, torch.from_numpy(mesh.rgb).to(device)
    else:
        texture = torch.from_numpy(mesh.texture).to(device) / 255
        values = torch.from_numpy(mesh.uv).to(device)
    height, width = cameras.height * supersample, cameras.width * supersample
    images = []
    for c2w, intrinsics in zip(cameras.c2w, cameras.intrinsics, strict=True):
        screen, depth = _project(vertices, c2w, intrinsics)
        pixel, interpolated = _visible(screen * supersample, depth, faces, values, height, width)
        colour = interpolated if texture is None else sample_texture(texture, interpolated)
        image = torch.zeros(height * width, 4, device=device)
        image[pixel] = torch.cat([colour, torch.ones_like(colour[:, :1])], 1)
        images.append(image.T.reshape(4, height, width))
    drawn = torch.nn.functional.avg_pool2d(torch.stack(images), supersample)
    rgb, opacity = drawn[:, :3], drawn[:, 3:]
    return MeshRender(rgb + (1 - opacity) * torch.tensor(background, device=device)[:, None, None], opacity)


def _project(vertices: Tensor, c2w: Tensor, intrinsics: Tensor) -> tuple[Tensor, Tensor]:
    """(V, 2) pixel coordinates and (V,) depths of world points in one view."""
    local = (vertices - c2w[:3, 3]) @ c2w[:3, :3]
    depth = -local[:, 2]
    # Image rows run down, camera y runs up.
    on_plane = torch.stack([local[:, 0], -local[:, 1]], -1) / depth[:, None]
    return on_plane * intrinsics[[0, 1], [0, 1]] + intrinsics[:2, 2], depth


def _visible(
    screen: Tensor, depth: Tensor, faces: Tensor, values: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """The (P,) pixels that the mesh covers, and in each the vertices' values (P, C) at its nearest point."""
    faces = faces[(depth[faces] > NEAR).all(1)]
    face, pixel, barycentric = cover(screen[faces], height, width)
    # 1 / depth is linear on the screen: it orders the points and corrects their weights.
    weights = barycentric / depth[faces[face]]
    nearness = weights.sum(1)
    order = nearness.argsort()
    nearest = torch.full((height * width,), -1, device=faces.device)
    # index_put keeps any one of several writes to a pixel; a maximum over ranks keeps the nearest.
    nearest.scatter_reduce_(0, pixel[order], torch.arange(len(order), device=faces.device), "amax")
    shown = order[nearest[nearest >= 0]]
    weights = weights[shown] / nearness[shown, None]
    return pixel[shown], (weights[..., None] * values[faces[face[shown]]]).sum(1)
