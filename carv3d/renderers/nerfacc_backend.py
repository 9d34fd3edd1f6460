"""nerfacc's CUDA kernels (Li et al. 2023, arXiv 2305.04966) behind the calls of the torch compositing."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from carv3d.kernels.compiled import unusable
from carv3d.renderers.occupancy import Occupancy
from carv3d.renderers.rays import Rays


@cache
def problem(device: torch.device) -> str | None:
    """Why nerfacc cannot be used on a device, in one line; None if it can. Builds its kernels the first time."""

    def trial() -> None:
        origins, directions = torch.tensor([[0.0, 0.0, -3.0], [0.0, 0.0, 1.0]], device=device)[:, None]
        rays = Rays.through(origins, directions, 1.0, 4, None)
        index = kept(rays, None, 1.0)
        density = torch.ones(len(index), device=device, requires_grad=True)
        with torch.enable_grad():  # the first call may be under no_grad
            opacity = composite(rays, index, density, [])[1]
            opacity.sum().backward()
        if len(index) != 4 or not torch.allclose(opacity, 1 - torch.exp(-opacity.new_tensor(2.0))):
            raise RuntimeError(f"a ray through a fog has {len(index)} samples of 4 and opacity {opacity.item():.4f}")

    return unusable("nerfacc", device, trial, flags="-std=c++17")


@torch.no_grad()
def kept(rays: Rays, occupancy: Occupancy | None, bound: float) -> Tensor:
    """Index (M,) of rays x S, increasing, of the samples that lie in the cube and in occupied cells.

    `traverse_grids` keeps the intervals of a ray whose *midpoints* lie in occupied cells. Each ray is passed in units
    of its intervals, and shifted so that the jittered samples are the midpoints: sample i is at i + 1/2 of the ray's
    interval [0, S]. So the cells of exactly the samples are tested, as in the torch code, and the result is their
    numbers. A sample within a
    rounding error of a cell's face (some 1e-6 of the cube) may be assigned to either cell.
    """
    scale, count = rays.length[:, None], len(rays.length)
    start = rays.first - 0.5 * rays.length
    zeros = torch.zeros_like(start)
    ends = torch.stack([zeros, zeros + rays.samples], -1)
    everything = torch.ones(1, 1, 1, dtype=torch.bool, device=zeros.device)
    _, samples, _ = importlib.import_module("nerfacc").traverse_grids(
        rays.origins + start[:, None] * rays.directions,
        scale * rays.directions,
        (everything if occupancy is None else occupancy.occupied)[None],
        zeros.new_tensor([[-bound] * 3 + [bound] * 3]),
        near_planes=zeros,
        far_planes=ends[:, 1],
        step_size=1.0,
        # Half an interval before and after the cube belongs to the cells at its faces.
        t_sorted=ends,
        t_indices=torch.arange(2, device=zeros.device).expand(count, 2),
        hits=scale > 0,
    )
    index: Tensor = samples.ray_indices * rays.samples + samples.vals.long()
    return index


def composite(
    rays: Rays, index: Tensor, density: Tensor, values: Sequence[Tensor]
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """`compositing.composite` on the samples alone, packed ray after ray; float32.

    Of nerfacc's `render_weight_from_density` only the scan is used: its 1 - exp(-x) loses precision at low density,
    and with it the depth of faint pixels.
    """
    nerfacc, count = importlib.import_module("nerfacc"), len(rays.length)
    ray = index // rays.samples
    edges = torch.searchsorted(ray, torch.arange(count + 1, device=ray.device))
    thickness = density * rays.length[ray]
    before = nerfacc.exclusive_sum(thickness, torch.stack([edges[:-1], edges.diff()], -1))
    weights = -(-before).exp() * torch.expm1(-thickness)
    opacity = nerfacc.accumulate_along_rays(weights, None, ray, count)
    return weights, opacity, [nerfacc.accumulate_along_rays(weights, value, ray, count) for value in values]
