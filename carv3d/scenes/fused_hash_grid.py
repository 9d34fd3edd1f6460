"""The hash grid's encoding as one Triton kernel forward and one back, for CUDA; `HashGrid._encode` does the same in
torch.

Torch makes the indices and weights of all corners of all levels in memory first, 16 numbers a point and level; here
they stay in registers. `TRITON_INTERPRET=1` runs the kernels slowly on the CPU, for tests without a GPU.
"""

# Triton types the arguments of a kernel.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import logging
import os
from functools import cache
from typing import Any

import torch
from torch import Tensor

from carv3d.kernels.compiled import failure

try:
    import triton
    import triton.language as tl
except ImportError:  # not with every build of torch
    triton = None

log = logging.getLogger(__name__)

_BLOCK = 256  # points a program

if triton is not None:

    @triton.jit
    def _corner(n, ok, points, cells, side, start, mask, corner, is_dense):
        """Row of the tables, and weight, of one corner of the cells that points lie in."""
        index_x, index_y, index_z = corner & 1, (corner >> 1) & 1, (corner >> 2) & 1
        x = tl.load(points + n * 3, mask=ok, other=0.0) * cells
        y = tl.load(points + n * 3 + 1, mask=ok, other=0.0) * cells
        z = tl.load(points + n * 3 + 2, mask=ok, other=0.0) * cells
        low_x = tl.minimum(tl.floor(x), cells - 1)
        low_y = tl.minimum(tl.floor(y), cells - 1)
        low_z = tl.minimum(tl.floor(z), cells - 1)
        weight_x = tl.where(index_x == 1, x - low_x, 1 - (x - low_x))
        weight_y = tl.where(index_y == 1, y - low_y, 1 - (y - low_y))
        weight_z = tl.where(index_z == 1, z - low_z, 1 - (z - low_z))
        i, j, k = low_x.to(tl.int64) + index_x, low_y.to(tl.int64) + index_y, low_z.to(tl.int64) + index_z
        flat = (i * side + j) * side + k
        # The primes of Müller et al.; only the low bits are kept.
        hashed = (i ^ (j * 2654435761) ^ (k * 805459861)) & mask
        return tl.where(is_dense, flat, hashed) + start, weight_x * weight_y * weight_z

    @triton.jit
    def _forward(
        points, table, out, cells_of, starts, count, mask, dense, levels, features: tl.constexpr, block: tl.constexpr
    ):
        level = tl.program_id(1)
        n = (tl.program_id(0) * block + tl.arange(0, block)).to(tl.int64)
        ok = n < count
        side, start = tl.load(cells_of + level) + 1, tl.load(starts + level)
        cells = (side - 1).to(tl.float32)
        for f in tl.static_range(features):
            total = tl.zeros((block,), tl.float32)
            for corner in tl.static_range(8):
                row, weight = _corner(n, ok, points, cells, side, start, mask, corner, level < dense)
                total += weight * tl.load(table + row * features + f, mask=ok, other=0.0)
            tl.store(out + (n * levels + level) * features + f, total, mask=ok)

    @triton.jit
    def _backward(
        points,
        grad,
        grad_table,
        cells_of,
        starts,
        count,
        mask,
        dense,
        levels,
        features: tl.constexpr,
        block: tl.constexpr,
    ):
        level = tl.program_id(1)
        n = (tl.program_id(0) * block + tl.arange(0, block)).to(tl.int64)
        ok = n < count
        side, start = tl.load(cells_of + level) + 1, tl.load(starts + level)
        cells = (side - 1).to(tl.float32)
        for corner in tl.static_range(8):
            row, weight = _corner(n, ok, points, cells, side, start, mask, corner, level < dense)
            for f in tl.static_range(features):
                g = tl.load(grad + (n * levels + level) * features + f, mask=ok, other=0.0)
                tl.atomic_add(grad_table + row * features + f, weight * g, mask=ok)


class _Encode(torch.autograd.Function):
    """Differentiable in the table only, as the torch twin."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, unit: Tensor, cells: Tensor, starts: Tensor, mask: int, dense: int) -> Tensor:
        unit, levels, features = unit.contiguous(), len(cells), table.shape[1]
        out = torch.empty(len(unit), levels * features, device=unit.device, dtype=torch.float32)
        _forward[_grid(unit, levels)](
            unit, table.detach(), out, cells, starts, len(unit), mask, dense, levels, features=features, block=_BLOCK
        )
        ctx.save_for_backward(unit, cells, starts)
        ctx.options = table.shape, mask, dense
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        unit, cells, starts = ctx.saved_tensors
        shape, mask, dense = ctx.options
        found = torch.zeros(shape, device=unit.device, dtype=torch.float32)
        _backward[_grid(unit, len(cells))](
            unit,
            grads[0].contiguous(),
            found,
            cells,
            starts,
            len(unit),
            mask,
            dense,
            len(cells),
            features=shape[1],
            block=_BLOCK,
        )
        return found, None, None, None, None, None


def _grid(unit: Tensor, levels: int) -> tuple[int, int]:
    return max(1, -(-len(unit) // _BLOCK)), levels


def encode(table: Tensor, unit: Tensor, cells: Tensor, starts: Tensor, mask: int, dense: int) -> Tensor:
    """Features (N, L F) float32 at points of the unit cube, differentiable in the table.

    Args:
        table: (rows, F) float32, all levels' tables after each other.
        unit: (N, 3) float32 in [0, 1].
        cells: (L,) long, cells along a side, and
        starts: (L,) long, first row, of each level.
        mask: entries of a hashed level, less 1.
        dense: how many levels, the first, are indexed without hashing.
    """
    found: Tensor = _Encode.apply(table, unit, cells, starts, mask, dense)
    return found


def problem(device: torch.device) -> str | None:
    """Why the kernels cannot be used on a device, in one line; None if they can. Tried once, and logged."""
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return "the fused hash grid needs a CUDA device"
    return _tried(str(device))


@cache
def _tried(device: str) -> str | None:
    found = "triton is not installed"
    if triton is not None:
        try:
            table = torch.ones(8, 2, device=device, requires_grad=True)
            one, zero = (torch.full((1,), value, device=device) for value in (1, 0))
            with torch.enable_grad():  # the first call may be under no_grad
                encode(table, torch.rand(3, 3, device=device), one, zero, 7, 1).sum().backward()
            return None
        except Exception as error:  # no compiler, or an unknown architecture
            found = failure("fused hash grid", "run", error)
    log.info("the hash grid is encoded by torch: %s", found)
    return found
