"""Blending of Gaussians in one pass, forward and backward, on the CPU.

`renderers.splatting` does the same in torch, with all pairs of a Gaussian and a pixel in memory and sorted. Here each
Gaussian, from near to far, is added to the pixels of its ellipse: memory is per pixel, and nothing is sorted but the
Gaussians.
"""

# numba types the arguments of a compiled function.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from carv3d.kernels.arithmetic import exp, f4
from carv3d.kernels.jit import PARTS, compiled, inlined, run

if TYPE_CHECKING:
    from carv3d.renderers.splatting import Boxes

CHANNELS = 5
"""What is blended: rgb, depth, and 1 for the opacity."""

_BLOCK = 512  # pixels whose opacities are computed together, with vector instructions


@inlined
def _row(a, b, c, x, dy, reach, left, right):
    """The columns, `right` not included, of a row at dy of an ellipse: a dx^2 + 2 b dx dy + c dy^2 <= reach."""
    inside = b * b * dy * dy - a * (c * dy * dy - reach)
    if not inside >= f4(0):
        return left, left
    half, middle = math.sqrt(inside) / a, x - b * dy / a - f4(0.5)
    # A pixel more on each side: what is outside is too faint, and is dropped by its opacity.
    return max(left, math.floor(middle - half)), min(right, math.ceil(middle + half) + 1)


@inlined
def _opacities(block, count, a, b, c, opacity, least, most):
    """Opacities of a block's pixels from their offsets (rows 0 and 1): in row 2 as they are, in row 3 as blended."""
    for m in range(count):
        dx, dy = block[0, m], block[1, m]
        alpha = opacity * exp(f4(-0.5) * (a * dx * dx + c * dy * dy) - b * dx * dy)
        kept = alpha if alpha >= least else f4(0)
        block[2, m] = kept
        block[3, m] = min(kept, most)


@inlined
def _fill(block, index, a, b, c, x, y, reach, left, right, bottom, row, column, first, width, start):
    """Offsets and pixels of a Gaussian from (row, column) on, until the block is full.

    Returns:
        their number, and the row and column to go on from; column -1 is a row's beginning.
    """
    count = 0
    while row < bottom:
        dy = f4(row - first) + f4(0.5) - y
        low, high = _row(a, b, c, x, dy, reach, left, right)
        column = max(column, low)
        stop = min(high, column + _BLOCK - count)
        base = (row - start) * width
        for k in range(column, stop):
            m = count + k - column
            block[0, m] = f4(k) + f4(0.5) - x
            block[1, m] = dy
            index[m] = base + k
        count += max(stop - column, 0)
        if stop < high:
            return count, row, stop
        row, column = row + 1, -1
    return count, row, column


@compiled
def _forward(start, end, order, boxes, width, centres, conics, opacities, reaches, features, least, most, image, light):
    """Blend the Gaussians into the rows [start, end) of image (rows, width, CHANNELS) and light (rows, width), both
    flat; light is what passes all Gaussians.
    """
    block, index = np.empty((4, _BLOCK), np.float32), np.empty(_BLOCK, np.int32)
    light, image = light[start * width : end * width], image[start * width * CHANNELS : end * width * CHANNELS]
    light[:] = f4(1)
    image[:] = f4(0)
    for g in order:
        left, right, top, bottom, first = boxes[g, 0], boxes[g, 1], boxes[g, 2], boxes[g, 3], boxes[g, 4]
        row, bottom, column = max(top, start), min(bottom, end), -1
        if row >= bottom:
            continue
        a, b, c, opacity = conics[g, 0], conics[g, 1], conics[g, 2], opacities[g]
        x, y = centres[g, 0], centres[g, 1]
        reach = reaches[g]
        f0, f1, f2, f3, f4th = features[g, 0], features[g, 1], features[g, 2], features[g, 3], features[g, 4]
        while row < bottom:
            count, row, column = _fill(
                block, index, a, b, c, x, y, reach, left, right, bottom, row, column, first, width, start
            )
            _opacities(block, count, a, b, c, opacity, least, most)
            for m in range(count):
                alpha, pixel = block[3, m], index[m]
                if alpha > f4(0):
                    weight = alpha * light[pixel]
                    light[pixel] -= weight
                    at = np.uint64(pixel * CHANNELS)
                    image[at] += weight * f0
                    image[at + np.uint64(1)] += weight * f1
                    image[at + np.uint64(2)] += weight * f2
                    image[at + np.uint64(3)] += weight * f3
                    image[at + np.uint64(4)] += weight * f4th


@compiled
def _backward(
    start,
    end,
    order,
    boxes,
    width,
    centres,
    conics,
    opacities,
    reaches,
    features,
    least,
    most,
    image,
    grads,
    light,
    behind,
    out,
):
    """Add the gradients by centre (2), conic (3), opacity and features (CHANNELS) to out (G, 11).

    Light and behind, (rows * width,), are for the pixels' running values: what passes, and the gradient times what
    lies behind.
    """
    block, index = np.empty((4, _BLOCK), np.float32), np.empty(_BLOCK, np.int32)
    light, behind = light[start * width : end * width], behind[start * width : end * width]
    grads = grads[start * width * CHANNELS : end * width * CHANNELS]
    image = image[start * width * CHANNELS : end * width * CHANNELS]
    for p in range(len(light)):
        light[p] = f4(1)
        total = f4(0)
        for k in range(CHANNELS):
            total += image[p * CHANNELS + k] * grads[p * CHANNELS + k]
        behind[p] = total
    for g in order:
        left, right, top, bottom, first = boxes[g, 0], boxes[g, 1], boxes[g, 2], boxes[g, 3], boxes[g, 4]
        row, bottom, column = max(top, start), min(bottom, end), -1
        if row >= bottom:
            continue
        a, b, c, opacity = conics[g, 0], conics[g, 1], conics[g, 2], opacities[g]
        x, y = centres[g, 0], centres[g, 1]
        reach = reaches[g]
        f0, f1, f2, f3, f4th = features[g, 0], features[g, 1], features[g, 2], features[g, 3], features[g, 4]
        of_x, of_y, of_xx, of_xy, of_yy, of_opacity = f4(0), f4(0), f4(0), f4(0), f4(0), f4(0)
        o0, o1, o2, o3, o4 = f4(0), f4(0), f4(0), f4(0), f4(0)
        while row < bottom:
            count, row, column = _fill(
                block, index, a, b, c, x, y, reach, left, right, bottom, row, column, first, width, start
            )
            _opacities(block, count, a, b, c, opacity, least, most)
            for m in range(count):
                alpha, pixel = block[3, m], index[m]
                by_power = f4(0)
                if alpha > f4(0):
                    at = np.uint64(pixel * CHANNELS)
                    g0, g1, g2 = grads[at], grads[at + np.uint64(1)], grads[at + np.uint64(2)]
                    g3, g4 = grads[at + np.uint64(3)], grads[at + np.uint64(4)]
                    passing = light[pixel]
                    weight = alpha * passing
                    light[pixel] = passing - weight
                    here = g0 * f0 + g1 * f1 + g2 * f2 + g3 * f3 + g4 * f4th
                    rest = behind[pixel] - weight * here
                    behind[pixel] = rest
                    o0 += weight * g0
                    o1 += weight * g1
                    o2 += weight * g2
                    o3 += weight * g3
                    o4 += weight * g4
                    if block[2, m] < most:
                        by_power = alpha * (passing * here - rest / (f4(1) - alpha))
                block[2, m] = by_power
            for m in range(count):
                dx, dy, by_power = block[0, m], block[1, m], block[2, m]
                by_dx, by_dy = by_power * dx, by_power * dy
                of_opacity += by_power
                of_x += by_dx
                of_y += by_dy
                of_xx += by_dx * dx
                of_xy += by_dx * dy
                of_yy += by_dy * dy
        out[g, 0] += a * of_x + b * of_y
        out[g, 1] += b * of_x + c * of_y
        out[g, 2] -= f4(0.5) * of_xx
        out[g, 3] -= of_xy
        out[g, 4] -= f4(0.5) * of_yy
        out[g, 5] += of_opacity / max(opacity, least)
        out[g, 6] += o0
        out[g, 7] += o1
        out[g, 8] += o2
        out[g, 9] += o3
        out[g, 10] += o4


class _Blend(torch.autograd.Function):
    """Differentiable in all but the boxes."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        centres, conics, opacities, features, boxes, least, most = inputs
        # Not in the kernel: of the logarithm there are several versions, and the one that is loaded first would decide.
        reaches = 2 * (opacities.detach() / least).clamp_min(1).log()
        values = [_numbers(tensor) for tensor in (centres, conics, opacities, reaches, features)]
        sides = (boxes.left, boxes.right, boxes.top, boxes.bottom, boxes.first_row)
        edges = torch.stack(sides, 1).int().numpy()
        order = boxes.order[(boxes.bottom > boxes.top)[boxes.order]].int().numpy()
        what = (order, edges, boxes.width, *values, f4(least), f4(most))
        image = np.empty(boxes.rows * boxes.width * CHANNELS, np.float32)
        light = np.empty(boxes.rows * boxes.width, np.float32)
        bands = _bands(edges, boxes.rows)
        run(_forward, [(*band, *what, image, light) for band in bands])
        ctx.what, ctx.image, ctx.bands = what, image, bands
        return torch.from_numpy(image).view(-1, CHANNELS)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        wanted = _numbers(grads[0]).reshape(-1)
        pixels, count = len(wanted) // CHANNELS, len(ctx.what[1])
        light, behind = np.empty(pixels, np.float32), np.empty(pixels, np.float32)
        found = np.zeros((len(ctx.bands), count, 6 + CHANNELS), np.float32)
        parts = zip(ctx.bands, found, strict=True)
        run(_backward, [(*band, *ctx.what, ctx.image, wanted, light, behind, out) for band, out in parts])
        total = torch.from_numpy(found).sum(0)
        return total[:, :2], total[:, 2:5], total[:, 5], total[:, 6:], None, None, None


def _bands(edges: np.ndarray[Any, Any], rows: int) -> list[tuple[int, int]]:
    """Runs of rows with about the same number of pixels of boxes: a function of the boxes alone."""
    change = np.zeros(rows + 1, np.int64)
    columns = (edges[:, 1] - edges[:, 0]).astype(np.int64) * (edges[:, 3] > edges[:, 2])
    np.add.at(change, edges[:, 2], columns)
    np.add.at(change, edges[:, 3], -columns)
    work = change[:-1].cumsum().cumsum()
    cuts = np.searchsorted(work, work[-1] * np.arange(1, PARTS) / PARTS, side="right")
    ends = [0, *np.maximum.accumulate(cuts).tolist(), rows]
    return [(low, high) for low, high in pairwise(ends) if high > low]


def _numbers(values: Tensor) -> np.ndarray[Any, Any]:
    return values.detach().contiguous().numpy()


def composite(
    centres: Tensor, conics: Tensor, opacities: Tensor, features: Tensor, boxes: Boxes, *, least: float, most: float
) -> Tensor:
    """Blend Gaussians to pixels: what `renderers.splatting.composite` describes, of float32 on the CPU.

    Args:
        centres, conics, opacities, boxes: see there.
        features: (G, CHANNELS).
        least, most: opacity below which a Gaussian is left out, and that none exceeds.
    """
    found: Tensor = _Blend.apply(centres, conics, opacities, features, boxes, least, most)
    return found
