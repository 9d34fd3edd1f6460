"""Gaussians on the image plane blended to pixels: plain torch, no loop over Gaussians or pixels.

Every Gaussian is expanded to the pixels of its bounding box, all Gaussians at once; contributions below 1/255 are
dropped, and the rest is sorted by pixel and, within a pixel, by depth. With sums over each pixel

    alpha_i = min(0.999, o_i exp(-d^T C_i d / 2))       C_i: inverse 2-D covariance, d: pixel centre - centre
    w_i     = alpha_i prod_{j before i} (1 - alpha_j)   pixel = sum_i w_i f_i

(Kerbl et al. 2023, arXiv 2308.04079, equation 3.) The gradients are written explicitly: they need two sums over the
same pairs, where autograd would keep a dozen copies of the pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

ALPHA_LEAST, ALPHA_MOST = 1 / 255, 0.999
"""What contributes less is left out; and no Gaussian hides all that is behind it. Both as in gsplat."""

CANDIDATES = 2**21
"""Pairs of a Gaussian and a pixel of its box that are looked at together: bounds the memory."""


@dataclass(frozen=True)
class Boxes:
    """The pixels that each of G Gaussians may touch, on R images of `width` columns stacked to one of `rows` rows.

    Attributes:
        left, right: (G,) int64 columns, `right` not included.
        top, bottom: (G,) int64 rows of the stack, `bottom` not included; equal to `top` for what is not seen.
        first_row: (G,) int64 row of the stack where the Gaussian's own image begins.
        order: (G,) int64 the Gaussians from near to far.
    """

    left: Tensor
    right: Tensor
    top: Tensor
    bottom: Tensor
    first_row: Tensor
    order: Tensor
    rows: int
    width: int


def composite(centres: Tensor, conics: Tensor, opacities: Tensor, features: Tensor, boxes: Boxes) -> Tensor:
    """Blend Gaussians to pixels.

    Args:
        centres: (G, 2) x, y in pixels of the Gaussian's own image, the top left pixel's centre at (0.5, 0.5).
        conics: (G, 3) entries xx, xy, yy of the inverse covariances, per square pixel.
        opacities: (G,) in [0, 1].
        features: (G, C) what is blended.
        boxes: the pixels of each Gaussian.

    Returns:
        (rows * width, C); where no Gaussian is, 0.
    """
    bands = list(_bands(boxes))
    arguments = (centres, conics, opacities, features)
    if len(bands) == 1:
        return _blend(*arguments, boxes, bands[0])
    # For a large image only one band's pairs are in memory; the backward pass computes them again.
    parts: list[Any] = [checkpoint(_blend, *arguments, boxes, band, use_reentrant=False) for band in bands]
    return torch.cat(parts)


def _bands(boxes: Boxes) -> Iterator[tuple[int, int]]:
    """Runs of rows whose boxes hold about CANDIDATES pixels, or single rows."""
    change = torch.zeros(boxes.rows + 1, dtype=torch.int64, device=boxes.top.device)
    columns = (boxes.right - boxes.left) * (boxes.bottom > boxes.top)
    change.index_add_(0, boxes.top, columns).index_add_(0, boxes.bottom, -columns)
    runs = (change[:-1].cumsum(0).cumsum(0) // CANDIDATES).unique_consecutive(return_counts=True)[1]
    first = 0
    for rows in runs.tolist():
        yield first, first + rows
        first += rows


def _blend(
    centres: Tensor, conics: Tensor, opacities: Tensor, features: Tensor, boxes: Boxes, band: tuple[int, int]
) -> Tensor:
    blended: Tensor = _Blend.apply(centres, conics, opacities, features, boxes, band)
    return blended


def _pick(values: Tensor, index: Tensor) -> Tensor:
    """`values[index]` of one dimension, several times faster on a CPU, in particular with int32."""
    return values.index_select(0, index)


def _pairs(boxes: Boxes, band: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Gaussian (M,), column (M,) and row (M,) of all pixels in the boxes, near Gaussians first; int32."""
    top, bottom = boxes.top[boxes.order].clamp_min(band[0]), boxes.bottom[boxes.order].clamp_max(band[1])
    met = (bottom > top).nonzero()[:, 0]
    chosen, top, height = boxes.order[met], top[met], (bottom - top)[met]
    left, width = boxes.left[chosen], (boxes.right - boxes.left)[chosen]
    counts = width * height
    which = torch.repeat_interleave(counts).int()
    start = (counts.cumsum(0) - counts).int()
    within = torch.arange(len(which), device=which.device, dtype=torch.int32) - _pick(start, which)
    span = _pick(width.int(), which)
    line = within // span
    column = _pick(left.int(), which) + within - line * span
    return _pick(chosen.int(), which), column, _pick(top.int(), which) + line


class _Blend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        centres, conics, opacities, features, boxes, band = inputs
        gaussian, column, row = _pairs(boxes, band)
        x, y = centres.unbind(1)
        # Rows count from the Gaussian's own image, because small numbers have smaller rounding errors.
        dx = column + 0.5 - _pick(x, gaussian)
        dy = row - _pick(boxes.first_row.int(), gaussian) + 0.5 - _pick(y, gaussian)
        a, b, c = (_pick(part, gaussian) for part in conics.unbind(1))
        alpha = _pick(opacities, gaussian) * (-0.5 * (a * dx * dx + c * dy * dy) - b * dx * dy).exp()
        kept = (alpha >= ALPHA_LEAST).nonzero()[:, 0].int()
        pixel, order = _pick((row - band[0]) * boxes.width + column, kept).sort(stable=True)
        kept = _pick(kept, order)
        gaussian, dx, dy, alpha = (_pick(values, kept) for values in (gaussian, dx, dy, alpha))
        # One segment for each pixel: its start, and the segment of each pair.
        begins = torch.ones_like(pixel, dtype=torch.bool)
        begins[1:] = pixel[1:] != pixel[:-1]
        segment, first = begins.cumsum(0, dtype=torch.int32) - 1, begins.nonzero()[:, 0]
        # In float64: the sum runs over all pixels, and differences within one pixel are used.
        light = torch.log1p(-alpha.clamp_max(ALPHA_MOST).double())
        before = light.cumsum(0) - light
        transmittance = (before - _pick(before[first], segment)).exp().to(alpha)
        weights = alpha.clamp_max(ALPHA_MOST) * transmittance
        pixels = (band[1] - band[0]) * boxes.width
        image = [
            weights.new_zeros(pixels).index_add_(0, pixel, weights * _pick(channel, gaussian))
            for channel in features.unbind(1)
        ]
        ctx.save_for_backward(
            conics, opacities, features, gaussian, dx, dy, alpha, pixel, transmittance, segment, first
        )
        return torch.stack(image, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        conics, opacities, features, gaussian, dx, dy, alpha, pixel, transmittance, segment, first = ctx.saved_tensors
        clamped = alpha.clamp_max(ALPHA_MOST)
        weights = clamped * transmittance

        def gather(per_pair: Tensor) -> Tensor:
            return per_pair.new_zeros(len(opacities)).index_add_(0, gaussian, per_pair)

        by_weight, of_features = torch.zeros_like(weights), []
        for grad, channel in zip(grads[0].unbind(1), features.unbind(1), strict=True):
            above = _pick(grad, pixel)
            by_weight.addcmul_(above, _pick(channel, gaussian))
            of_features.append(gather(weights * above))
        # A Gaussian adds its own colour, and occludes those behind it in the same pixel.
        share = (weights * by_weight).double()
        upto = share.cumsum(0)
        # The part of a pixel's sum after a pair: the sum at the pixel's end minus the sum up to the pair.
        ends = torch.cat([first, first.new_full((1,), len(upto))])[1:] - 1
        behind = _pick(upto[ends], segment) - upto
        by_alpha = transmittance * by_weight - behind.to(alpha) / (1 - clamped)
        by_power = torch.where(alpha < ALPHA_MOST, by_alpha * alpha, 0)
        a, b, c = (_pick(part, gaussian) for part in conics.unbind(1))
        of_centres = [gather(by_power * (a * dx + b * dy)), gather(by_power * (b * dx + c * dy))]
        by_dx = by_power * dx
        of_conics = [gather(-0.5 * by_dx * dx), gather(-by_dx * dy), gather(-0.5 * by_power * dy * dy)]
        # The derivative of the logarithm by the opacity is 1 / opacity; Gaussians that are too faint have no pairs.
        of_opacities = gather(by_power) / opacities.clamp_min(ALPHA_LEAST)
        return (
            torch.stack(of_centres, 1),
            torch.stack(of_conics, 1),
            of_opacities,
            torch.stack(of_features, 1),
            None,
            None,
        )
