"""Stand-ins in plain Python for the CUDA kernels of nerfacc 0.5.3 that the renderer calls, so that it can be tested
without a GPU: they replace the functions of `nerfacc.cuda`, and nerfacc's own Python and autograd around them run.

What they compute is what cuda/csrc/grid.cu and scan.cu compute, for the options that the renderer uses: one grid, a
constant step, no limit on the steps. The walk through the cells is in float32, step by step as there.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

EPS = np.float32(1e-6)


def use(patch: pytest.MonkeyPatch) -> None:
    """Put them in the kernels' place."""
    cuda = pytest.importorskip("nerfacc").cuda
    patch.setattr(cuda, "traverse_grids", traverse_grids)
    patch.setattr(cuda, "exclusive_sum", exclusive_sum)


def exclusive_sum(starts: Tensor, counts: Tensor, inputs: Tensor, normalize: bool, backward: bool) -> Tensor:
    """Of each chunk the sum of what lies before; backward, of what lies behind. float32 as the kernel."""
    assert inputs.dtype == torch.float32 and not normalize
    assert starts.dtype == counts.dtype == torch.int64
    found = torch.empty_like(inputs)
    for start, count in zip(starts.tolist(), counts.tolist(), strict=True):
        part = inputs[start : start + count].detach()
        part = part.flip(0) if backward else part
        sums = part.cumsum(0) - part
        found[start : start + count] = sums.flip(0) if backward else sums
    return found


def traverse_grids(
    origins: Tensor,
    directions: Tensor,
    mask: Tensor,
    binaries: Tensor,
    aabbs: Tensor,
    t_sorted: Tensor,
    t_indices: Tensor,
    hits: Tensor,
    near_planes: Tensor,
    far_planes: Tensor,
    step_size: float,
    cone_angle: float,
    *options: Any,
) -> tuple[Any, Any, Tensor]:
    """Samples at the midpoints of the steps whose midpoints lie in occupied cells. Intervals are not made."""
    assert (
        len(binaries) == len(aabbs) == 1 and cone_angle == 0 and step_size > 0 and options == (True,) * 3 + (-1, False)
    )
    floats = (origins, directions, aabbs, t_sorted, near_planes, far_planes)
    assert all(x.dtype == torch.float32 and x.is_contiguous() for x in floats)
    assert t_indices.dtype == torch.int64 and (t_indices == torch.arange(2)).all()
    assert binaries.dtype == hits.dtype == torch.bool and mask.all()
    occupied, box = binaries[0].numpy(), aabbs[0].numpy()
    found: list[list[np.float32]] = []
    for ray, (low, high) in enumerate(t_sorted.numpy()):
        low, high = max(low, near_planes[ray].numpy()), min(high, far_planes[ray].numpy())
        if not hits[ray, 0] or low >= high:
            found.append([])
            continue
        found.append(_walk(origins[ray].numpy(), directions[ray].numpy(), occupied, box, low, high, step_size))
    counts = torch.tensor([len(middles) for middles in found])
    samples = SimpleNamespace(
        vals=torch.tensor([middle for middles in found for middle in middles], dtype=torch.float32),
        ray_indices=torch.arange(len(found)).repeat_interleave(counts),
        chunk_starts=counts.cumsum(0) - counts,
        chunk_cnts=counts,
        is_valid=None,
    )
    nothing = SimpleNamespace(
        vals=None, ray_indices=None, chunk_starts=None, chunk_cnts=None, is_left=None, is_right=None
    )
    return nothing, samples, far_planes


def _walk(
    origin: np.ndarray, direction: np.ndarray, occupied: np.ndarray, box: np.ndarray, low: Any, high: Any, step: float
) -> list[np.float32]:
    """Amanatides and Woo's walk from cell to cell along one ray, from `low` to `high`."""
    low, high, step = np.float32(low), np.float32(high), np.float32(step)
    resolution = np.array(occupied.shape)
    least, side = box[:3], (box[3:] - box[:3]) / resolution.astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        inverse = np.float32(1) / direction
        first, last = origin + direction * (low + EPS), origin + direction * (high - EPS)
        unit = [(x - least) / (box[3:] - least) * resolution.astype(np.float32) for x in (first, last)]
        cell, final = (np.clip(np.trunc(np.clip(x, -1e6, 1e6)).astype(int), 0, resolution - 1) for x in unit)
        ahead = (least + ((cell + (direction > 0)).astype(np.float32) * side - first)) * inverse + low
        until = np.where(direction == 0, high, ahead).astype(np.float32)
        towards = np.sign(direction).astype(int)
        delta = np.where(direction == 0, high, side * inverse * towards).astype(np.float32)
    half, t, middles = np.float32(0.5) * step, np.float32(0), []
    while t + half < low:
        t += step
    while True:
        end = np.fmin(until.min(), high)
        while t + half < end:
            if occupied[tuple(cell)]:
                middles.append((t + (t + step)) * np.float32(0.5))
            t += step
        x, y, z = until
        axis = 0 if x < y and x < z else 1 if y < z else 2
        cell[axis] += towards[axis]
        until[axis] += delta[axis]
        if cell[axis] == final[axis] + towards[axis]:
            return middles
