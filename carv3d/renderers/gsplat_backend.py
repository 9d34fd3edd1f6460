"""gsplat's CUDA rasteriser (Ye et al. 2024, arXiv 2409.06765) behind the call of the torch one."""

from __future__ import annotations

import importlib
from functools import cache

import torch
from torch import Tensor

from carv3d.cameras import Cameras
from carv3d.kernels.compiled import unusable
from carv3d.renderers.projection import DILATION, NEAR
from carv3d.scenes import Gaussians, ImageProjection


@cache
def problem(device: torch.device) -> str | None:
    """Why gsplat cannot be used on a device, in one line; None if it can. Builds its kernels the first time."""

    def trial() -> None:
        one = torch.ones(1, 3, device=device)
        view = torch.eye(4, device=device)[None]
        view[0, 2, 3] = 3
        intrinsics = torch.tensor([[[8.0, 0, 8], [0, 8, 8], [0, 0, 1]]], device=device)
        importlib.import_module("gsplat").rasterization(
            0 * one, torch.eye(4, device=device)[:1], 0.1 * one, 0.5 * one[:, 0], one, view, intrinsics, 16, 16
        )

    return unusable("gsplat", device, trial)


def rasterise(scene: Gaussians, colours: Tensor, cameras: Cameras, view: Tensor) -> tuple[Tensor, ImageProjection]:
    """Blended colour, depth along the axis, and opacity (R, H, W, 5); and the image projection.

    Args:
        scene: on CUDA.
        colours: (R, N, 3) in [0, 1].
        cameras: R cameras.
        view: (R, 4, 4) world to camera; x right, y down, z forward.
    """
    image, opacity, found = importlib.import_module("gsplat").rasterization(
        means=scene.positions,
        quats=scene.rotations,
        scales=scene.scales,
        opacities=scene.opacities,
        colors=colours.contiguous(),
        viewmats=view,
        Ks=cameras.intrinsics,
        width=cameras.width,
        height=cameras.height,
        near_plane=NEAR,
        eps2d=DILATION,
        packed=False,  # one row for each Gaussian and render, as in the torch code
        render_mode="RGB+D",
        rasterize_mode="antialiased",
    )
    radii = found["radii"].amax(-1).to(image.dtype)
    projection = ImageProjection(found["means2d"], radii, cameras.height, cameras.width)
    return torch.cat([image, opacity], -1), projection
