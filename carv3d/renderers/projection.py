"""Gaussians in space to Gaussians on the image: EWA splatting (Zwicker et al. 2002; arXiv 2308.04079, section 4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from carv3d.cameras import Cameras
from carv3d.renderers.splatting import ALPHA_LEAST
from carv3d.scenes import Gaussians
from carv3d.system.transfer import constant

NEAR = 0.01
"""Depth before which nothing is drawn, world units."""

DILATION = 0.3
"""Variance added to every Gaussian on the image, square pixels: none falls between the pixels' centres."""

# Smallest share of its opacity that a dilated Gaussian keeps, so that the square root's gradient is finite.
_LEAST_SHARE = 0.005
# The perspective is linearised at the nearest point of the image, widened by this share: far outside of the image it
# diverges.
_MARGIN = 0.15


@dataclass(frozen=True)
class Projected:
    """N Gaussians on R images.

    Attributes:
        centres: (R, N, 2) x, y in pixels.
        conics: (R, N, 3) entries xx, xy, yy of the inverse covariances, per square pixel.
        opacities: (R, N) reduced by the dilation.
        depths: (R, N) along the camera's axis, world units.
        extents: (R, N, 2) half sides of the boxes outside which a Gaussian adds less than 1/255, pixels; 0 for
            those that are behind the camera or too faint.
    """

    centres: Tensor
    conics: Tensor
    opacities: Tensor
    depths: Tensor
    extents: Tensor


def views(cameras: Cameras) -> Tensor:
    """(R, 4, 4) world to camera; x right, y down, z forward, the convention of splatting."""
    rotation = (cameras.c2w[:, :3, :3] * constant(cameras.c2w, 1.0, -1.0, -1.0)).mT
    view = torch.zeros_like(cameras.c2w)
    view[:, :3, :3], view[:, 3, 3] = rotation, 1
    view[:, :3, 3] = -(rotation @ cameras.c2w[:, :3, 3:])[..., 0]
    return view


def project(scene: Gaussians, cameras: Cameras) -> Projected:
    """Project a scene to the images of R cameras."""
    view = views(cameras)
    rotation = view[:, :3, :3]
    local = scene.positions @ rotation.mT + view[:, None, :3, 3]  # (R, N, 3)
    depth = local[..., 2]
    z = depth.clamp_min(NEAR)
    focal = cameras.intrinsics.diagonal(dim1=-2, dim2=-1)[:, None, :2]
    middle = cameras.intrinsics[:, None, :2, 2]
    slope = local[..., :2] / z[..., None]
    centres = slope * focal + middle

    size = constant(middle, cameras.width, cameras.height)
    low, high = (-_MARGIN * size - middle) / focal, ((1 + _MARGIN) * size - middle) / focal
    bent = torch.minimum(torch.maximum(slope, low), high)
    # J R S R^T J^T with J the derivative of the projection: two rows of J R, each fx (R_x - slope_x R_z) / z.
    rows = (rotation[:, None, :2] - bent[..., None] * rotation[:, None, 2:]) * (focal / z[..., None])[..., None]
    half = rows @ (scene.axes() * scene.scales[:, None])  # (R, N, 2, 3)
    x, y = half.unbind(-2)
    xx, xy, yy = (x * x).sum(-1), (x * y).sum(-1), (y * y).sum(-1)
    sharp = xx * yy - xy * xy
    xx, yy = xx + DILATION, yy + DILATION
    determinant = xx * yy - xy * xy
    # A dilated Gaussian covers more pixels with less opacity, so that pictures of different sizes agree
    # (Mip-Splatting's 2-D filter,
    # arXiv 2311.16493, section 4.2).
    opacities = scene.opacities * (sharp / determinant).clamp_min(_LEAST_SHARE**2).sqrt()
    conics = torch.stack([yy, -xy, xx], -1) / determinant[..., None]
    with torch.no_grad():
        reach = (2 * (opacities / ALPHA_LEAST).clamp_min(1).log()).sqrt()
        seen = (depth > NEAR) & (reach > 0)
        extents = reach[..., None] * torch.stack([xx, yy], -1).sqrt() * seen[..., None]
    return Projected(centres, conics, opacities, depth, extents)
