"""Splatting of Gaussians: one call, by plain torch on any device, gsplat on CUDA, or a kernel for the CPU."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from carv3d.cameras import Cameras
from carv3d.kernels import jit
from carv3d.kernels import splatting as kernel
from carv3d.renderers import gsplat_backend
from carv3d.renderers.backend import choose
from carv3d.renderers.base import EMPTY, Render, Renderer
from carv3d.renderers.config import RendererConfig
from carv3d.renderers.projection import Projected, project, views
from carv3d.renderers.splatting import ALPHA_LEAST, ALPHA_MOST, Boxes, composite
from carv3d.scenes import Gaussians, ImageProjection
from carv3d.system.transfer import constant


class SplatRenderer(Renderer[Gaussians]):
    """Renders `Gaussians` as Kerbl et al. 2023, with Mip-Splatting's filter.

    Args:
        config: background and backend; its other keys are of fields.
        device: where it will render.

    Raises:
        UserError: a backend is asked for and does not work here.
    """

    def __init__(self, config: RendererConfig, *, device: torch.device | None = None) -> None:
        super().__init__(config.background)
        kernels = {"gsplat": gsplat_backend.problem, "numba": jit.problem}
        self.backend = choose(config.backend, kernels, device or torch.device("cpu"))

    def forward(
        self,
        scene: Gaussians,
        cameras: Cameras,
        generator: torch.Generator | None = None,
        *,
        training: bool = True,
        normals: bool = False,
    ) -> Render:
        """Render the scene from R cameras.

        Args:
            scene: on the cameras' device.
            cameras: R cameras of H x W pixels.
            generator: draws the random background; needed in training only.
            training: random backgrounds.
            normals: also compute normals, from the depths.
        """
        if training and generator is None:
            raise ValueError("rendering for training draws random numbers: pass a generator")
        towards = torch.nn.functional.normalize(scene.positions - cameras.c2w[:, None, :3, 3], dim=-1)
        colours = scene.rgb(towards).expand(len(cameras), -1, -1)
        if self.backend == "gsplat":
            blended, projection = gsplat_backend.rasterise(scene, colours, cameras, views(cameras))
        else:
            fused = self.backend == "numba" and colours.dtype == torch.float32
            blended, projection = _rasterise(scene, colours, cameras, fused)
        if projection.centres.requires_grad:
            projection.centres.retain_grad()
        rgb, depth, opacity = blended.permute(0, 3, 1, 2).split([3, 1, 1], 1)
        background = self.backdrop(len(cameras), generator if training else None, rgb.device).to(rgb)
        rgb = rgb + (1 - opacity) * background[:, :, None, None]

        # So far the depth is along the camera's axis; the distance along the ray is longer.
        origins, directions = cameras.rays()
        forward = -cameras.c2w[:, None, None, :3, 2]
        length = 1 / (directions * forward).sum(-1)[:, None]
        beyond = origins[:, 0, 0].norm(dim=-1)[:, None, None, None] + 3**0.5 * scene.bound
        depth = torch.where(opacity > EMPTY, depth / opacity.clamp_min(EMPTY) * length, beyond)
        normal = _normals(depth, origins, directions) * opacity if normals else None
        return Render(rgb, opacity, depth, normal, None, projection)


def _rasterise(scene: Gaussians, colours: Tensor, cameras: Cameras, fused: bool) -> tuple[Tensor, ImageProjection]:
    """Blended colour, depth along the axis, and opacity, (R, H, W, 5); fused: by the kernel."""
    projected = project(scene, cameras)
    features = torch.cat([colours, projected.depths[..., None], torch.ones_like(colours[..., :1])], -1)
    blend = partial(kernel.composite, least=ALPHA_LEAST, most=ALPHA_MOST) if fused else composite
    blended = blend(
        projected.centres.flatten(0, 1),
        projected.conics.flatten(0, 1),
        projected.opacities.flatten(),
        features.flatten(0, 1),
        _boxes(projected, cameras.height, cameras.width),
    )
    radii = projected.extents.amax(-1)
    projection = ImageProjection(projected.centres, radii, cameras.height, cameras.width)
    return blended.view(len(cameras), cameras.height, cameras.width, -1), projection


@torch.no_grad()
def _boxes(projected: Projected, height: int, width: int) -> Boxes:
    renders, count = projected.depths.shape
    limit = constant(projected.centres, width, height)
    # The pixels whose centres, at half integers, lie inside.
    low = (projected.centres - projected.extents - 0.5).ceil().clamp_min(0).minimum(limit)
    high = (projected.centres + projected.extents - 0.5).floor().add(1).clamp_min(0).minimum(limit)
    high = torch.where(projected.extents > 0, high, low)
    (left, top), (right, bottom) = ((edge.view(-1, 2).long().unbind(-1)) for edge in (low, high.maximum(low)))
    first_row = torch.arange(renders, device=left.device).repeat_interleave(count) * height
    order = projected.depths.flatten().argsort(stable=True)
    return Boxes(left, right, top + first_row, bottom + first_row, first_row, order, renders * height, width)


def _normals(depth: Tensor, origins: Tensor, directions: Tensor) -> Tensor:
    """Unit normals (R, 3, H, W) towards the camera, of the surface at distances (R, 1, H, W) along the rays.

    The cross product of the surface's steps from pixel to pixel (as in 2-D Gaussian Splatting, arXiv 2403.17888); of
    the steps to both sides, the one with the smaller jump in depth, so that silhouettes have no rim.
    """
    points = (origins + depth[:, 0, ..., None] * directions).permute(0, 3, 1, 2)
    right = _step(points, depth, 3)
    down = _step(points, depth, 2)
    return torch.nn.functional.normalize(torch.linalg.cross(down, right, dim=1), dim=1, eps=1e-12)


def _step(points: Tensor, depth: Tensor, axis: int) -> Tensor:
    n = points.shape[axis]
    if n == 1:
        return torch.zeros_like(points)
    steps, jumps = (torch.narrow(x, axis, 1, n - 1) - torch.narrow(x, axis, 0, n - 1) for x in (points, depth))
    ahead, behind = (
        [torch.cat(parts, axis) for parts in ([x, torch.narrow(x, axis, n - 2, 1)], [torch.narrow(x, axis, 0, 1), x])]
        for x in (steps, jumps.abs())
    )
    return torch.where(behind[0] <= behind[1], ahead[0], ahead[1])
