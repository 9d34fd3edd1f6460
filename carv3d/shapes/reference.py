"""True pictures of the built-in world's objects, by sphere tracing.

Lambert shading under one light fixed to the world, so that the shade belongs to the surface, and a scene without
lights can represent it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from carv3d.cameras import Cameras
from carv3d.shapes.catalogue import SHAPES, Paint, Thing, palette

AMBIENT = 0.6
LIGHT = (0.45, 0.35, 0.82)
_BOUND = 1.1  # every object lies inside this sphere
_STEPS = 40
_SURFACE = 4e-3
_TETRAHEDRON = ((1.0, -1.0, -1.0), (-1.0, -1.0, 1.0), (-1.0, 1.0, -1.0), (1.0, 1.0, 1.0))


@torch.no_grad()
def shade_maps(shape: str, cameras: Cameras, supersample: int = 2) -> Tensor:
    """Renders without colour: the brightness of each paint in each pixel.

    Args:
        shape: a key of `SHAPES`.
        cameras: R cameras of H x W pixels.
        supersample: rays per pixel and axis.

    Returns:
        (R, 6, H, W) in [0, 1]: the shade of each of the five `Paint`s times its coverage, then the opacity.
        `colourise` makes pictures of them.
    """
    parts = SHAPES[shape].parts
    fine = Cameras(
        cameras.c2w,
        torch.cat([cameras.intrinsics[:, :2] * supersample, cameras.intrinsics[:, 2:]], 1),
        cameras.azimuth,
        cameras.elevation,
        cameras.distance,
        cameras.height * supersample,
        cameras.width * supersample,
    )
    origins, directions = fine.rays()
    o, d = origins.reshape(-1, 3).T.contiguous(), directions.reshape(-1, 3).T.contiguous()

    def distances(p: Tensor) -> Tensor:
        return torch.stack([solid((p[0], p[1], p[2])) for solid, _ in parts])

    along = (o * d).sum(0)
    discriminant = along * along - (o * o).sum(0) + _BOUND**2
    index = (discriminant > 0).nonzero()[:, 0]
    half = discriminant[index].sqrt()
    near, far = -along[index] - half, -along[index] + half
    hits, depths = [], []
    for _ in range(_STEPS):
        if not len(index):
            break
        step = distances(o[:, index] + near * d[:, index]).amin(0)
        hit = step < _SURFACE
        hits.append(index[hit])
        depths.append(near[hit])
        near = near + step
        keep = ~hit & (near < far)
        index, near, far = index[keep], near[keep], far[keep]
    index, depth = torch.cat(hits), torch.cat(depths)
    p = o[:, index] + depth * d[:, index]
    paints = torch.tensor([int(paint) for _, paint in parts])[distances(p).argmin(0)]
    corners = torch.tensor(_TETRAHEDRON)
    normal = sum(c[:, None] * distances(p + 2e-3 * c[:, None]).amin(0) for c in corners)
    normal = torch.nn.functional.normalize(torch.as_tensor(normal), dim=0)
    light = torch.nn.functional.normalize(torch.tensor(LIGHT), dim=0)
    maps = torch.zeros(o.shape[1], len(Paint) + 1)
    maps[index, paints] = AMBIENT + (1 - AMBIENT) * (light @ normal).clamp_min(0)
    maps[index, len(Paint)] = 1
    maps = maps.view(len(cameras), fine.height, fine.width, -1).permute(0, 3, 1, 2)
    return torch.nn.functional.avg_pool2d(maps, supersample)


def colourise(maps: Tensor, paints: Tensor, background: float = 1.0) -> Tensor:
    """Pictures from shade maps.

    Args:
        maps: (R, 6, H, W) from `shade_maps`.
        paints: (5, 3), or (R, 5, 3), rgb of each paint.
        background: its grey level.

    Returns:
        (R, 3, H, W) rgb in [0, 1].
    """
    paints = paints.expand(len(maps), -1, -1)
    return torch.einsum("rphw,rpc->rchw", maps[:, :-1], paints) + (1 - maps[:, -1:]) * background


def reference(thing: Thing, cameras: Cameras) -> tuple[Tensor, Tensor]:
    """The pictures of the true object, on white.

    Returns:
        rgb (R, 3, H, W) and opacity (R, 1, H, W), in [0, 1].
    """
    maps = shade_maps(thing.shape, cameras)
    return colourise(maps, palette(thing.colour)), maps[:, -1:]
