"""The hash grid's encoding in one pass, forward and backward, on the CPU; `HashGrid._encode` does the same in torch.

Torch makes the indices and weights of all corners of all levels in memory first, 16 numbers a point and level; here
they stay in registers. The backward pass gives whole levels to threads, so that no two add to the same row.
"""

# numba types the arguments of a compiled function.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from carv3d.kernels.arithmetic import f4
from carv3d.kernels.jit import PARTS, compiled, inlined, problem, run

__all__ = ["encode", "problem"]

# Müller et al. 2022, section 3; the first is 1. Only the low bits of the products are used.
_PRIME_Y, _PRIME_Z = np.uint64(2_654_435_761), np.uint64(805_459_861)
_ONE = np.uint64(1)


@inlined
def _low(x, cells):
    """Index of the lower corner along an axis, and the share of the upper one."""
    where = x * f4(cells)
    low = min(math.floor(where), cells - 1)
    return np.uint64(low), where - f4(low)


@inlined
def _rows(i, j, k, side, start, mask, is_dense):
    """Rows of a cell's eight corners in the tables; the last axis is quickest."""
    if is_dense:
        n = np.uint64(side)
        o = start + (i * n + j) * n + k
        a, b, c = o + n, o + n * n, o + n * n + n
        return o, o + _ONE, a, a + _ONE, b, b + _ONE, c, c + _ONE
    y0, y1 = j * _PRIME_Y, (j + _ONE) * _PRIME_Y
    z0, z1 = k * _PRIME_Z, (k + _ONE) * _PRIME_Z
    u = i + _ONE
    return (
        start + ((i ^ y0 ^ z0) & mask),
        start + ((i ^ y0 ^ z1) & mask),
        start + ((i ^ y1 ^ z0) & mask),
        start + ((i ^ y1 ^ z1) & mask),
        start + ((u ^ y0 ^ z0) & mask),
        start + ((u ^ y0 ^ z1) & mask),
        start + ((u ^ y1 ^ z0) & mask),
        start + ((u ^ y1 ^ z1) & mask),
    )


@inlined
def _weights(u, v, w):
    """Of the eight corners, in the order of `_rows`."""
    low_u, low_v, low_w = f4(1) - u, f4(1) - v, f4(1) - w
    a, b, c, d = low_u * low_v, low_u * v, u * low_v, u * v
    return a * low_w, a * w, b * low_w, b * w, c * low_w, c * w, d * low_w, d * w


@compiled
def _forward(first, last, points, table, cells, starts, mask, dense, out):
    """Features (N, L, F) of the points [first, last); table is (rows, F)."""
    levels, features = len(cells), table.shape[1]
    for level in range(levels):
        n, start, is_dense = cells[level], np.uint64(starts[level]), level < dense
        for p in range(first, last):
            i, u = _low(points[p, 0], n)
            j, v = _low(points[p, 1], n)
            k, w = _low(points[p, 2], n)
            r0, r1, r2, r3, r4, r5, r6, r7 = _rows(i, j, k, n + 1, start, mask, is_dense)
            w0, w1, w2, w3, w4, w5, w6, w7 = _weights(u, v, w)
            for f in range(features):
                low = w0 * table[r0, f] + w1 * table[r1, f] + w2 * table[r2, f] + w3 * table[r3, f]
                high = w4 * table[r4, f] + w5 * table[r5, f] + w6 * table[r6, f] + w7 * table[r7, f]
                out[p, level, f] = low + high


@compiled
def _backward(part, parts, points, grads, cells, starts, mask, dense, found):
    """Add the gradient of every `parts`-th level's features to found (rows, F)."""
    levels, features = len(cells), found.shape[1]
    for level in range(part, levels, parts):
        n, start, is_dense = cells[level], np.uint64(starts[level]), level < dense
        for p in range(len(points)):
            i, u = _low(points[p, 0], n)
            j, v = _low(points[p, 1], n)
            k, w = _low(points[p, 2], n)
            r0, r1, r2, r3, r4, r5, r6, r7 = _rows(i, j, k, n + 1, start, mask, is_dense)
            w0, w1, w2, w3, w4, w5, w6, w7 = _weights(u, v, w)
            for f in range(features):
                g = grads[p, level, f]
                found[r0, f] += w0 * g
                found[r1, f] += w1 * g
                found[r2, f] += w2 * g
                found[r3, f] += w3 * g
                found[r4, f] += w4 * g
                found[r5, f] += w5 * g
                found[r6, f] += w6 * g
                found[r7, f] += w7 * g


class _Encode(torch.autograd.Function):
    """Differentiable in the table only, as the torch twin."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, unit: Tensor, cells: Tensor, starts: Tensor, mask: int, dense: int) -> Tensor:
        points, count = unit.detach().contiguous().numpy(), len(unit)
        layout = cells.numpy(), starts.numpy(), np.uint64(mask), dense
        values = table.detach().contiguous().numpy()
        out = torch.empty(count, len(cells), table.shape[1])
        ends = [count * part // PARTS for part in range(PARTS + 1)]
        run(_forward, [(*two, points, values, *layout, out.numpy()) for two in pairwise(ends)])
        ctx.points, ctx.layout, ctx.shape = points, layout, table.shape
        return out.view(count, -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        wanted = grads[0].contiguous().view(len(grads[0]), -1, ctx.shape[1]).numpy()
        found = torch.zeros(ctx.shape)
        run(_backward, [(part, PARTS, ctx.points, wanted, *ctx.layout, found.numpy()) for part in range(PARTS)])
        return found, None, None, None, None, None


def encode(table: Tensor, unit: Tensor, cells: Tensor, starts: Tensor, mask: int, dense: int) -> Tensor:
    """Features (N, L F) float32 at points of the unit cube: what `scenes.fused_hash_grid.encode` does on CUDA.

    Args:
        table: (rows, F) float32 on the CPU, all levels' tables after each other.
        unit: (N, 3) float32 in [0, 1].
        cells, starts: (L,) long, cells along a side, and first row, of each level.
        mask: entries of a hashed level, less 1.
        dense: how many levels, the first, are indexed without hashing.
    """
    found: Tensor = _Encode.apply(table, unit, cells, starts, mask, dense)
    return found
