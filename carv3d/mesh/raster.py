"""The pixels that a triangle covers, for drawing a mesh and for baking its texture."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

FRAGMENTS = 2**22
"""Candidate pixels held at a time."""


def cover(triangles: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Every pair of a triangle and a pixel centre inside it.

    Each triangle is expanded to the pixels of its bounding box, all triangles at once.

    Args:
        triangles: (F, 3, 2) corners x, y in pixels: the centre of the top left pixel is (0.5, 0.5).
        height, width: of the image.

    Returns:
        face (P,) index of the triangle; pixel (P,) index row * width + column; barycentric (P, 3) weights
        of the three corners. A pixel occurs once for each triangle over it.
    """
    size = torch.tensor([width, height], device=triangles.device)
    low = torch.minimum((triangles.amin(1) - 0.5).ceil().clamp_min(0).long(), size)
    high = torch.minimum((triangles.amax(1) + 0.5).floor().clamp_min(0).long(), size)
    spans = (high - low).clamp_min(0)
    found = [_inside(triangles, faces, low, spans, width) for faces in _batches(spans.prod(1))]
    face, pixel, barycentric = zip(*found, strict=True)
    return torch.cat(face), torch.cat(pixel), torch.cat(barycentric)


def _batches(counts: Tensor) -> Iterator[Tensor]:
    """Face indices in runs whose boxes hold about FRAGMENTS pixels."""
    runs = (counts.cumsum(0) // FRAGMENTS).unique_consecutive(return_counts=True)[1]
    yield from torch.arange(len(counts), device=counts.device).split(runs.tolist() or [0])


def _inside(triangles: Tensor, faces: Tensor, low: Tensor, spans: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    counts = spans[faces].prod(1)
    face = faces.repeat_interleave(counts)
    first = (counts.cumsum(0) - counts).repeat_interleave(counts)
    within = torch.arange(len(face), device=face.device) - first
    column = low[face, 0] + within % spans[face, 0]
    row = low[face, 1] + within // spans[face, 0]
    centre = torch.stack([column, row], -1) + 0.5
    a, b, c = triangles[face].unbind(1)
    area = _cross(b - a, c - a)
    second, third = _cross(centre - a, c - a) / area, _cross(b - a, centre - a) / area
    barycentric = torch.stack([1 - second - third, second, third], -1)
    # The margin closes gaps between neighbours; a triangle without area gives nan and is left out.
    inside = (barycentric > -1e-5).all(-1)
    return face[inside], (row * width + column)[inside], barycentric[inside]


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def sample_texture(texture: Tensor, uv: Tensor) -> Tensor:
    """Bilinear values (N, C) of a (H, W, C) texture, row 0 at v = 1, at (N, 2) coordinates."""
    grid = torch.stack([2 * uv[:, 0] - 1, 1 - 2 * uv[:, 1]], -1)
    image = texture.movedim(-1, 0)[None]
    return grid_sample(image, grid[None, None], align_corners=False, padding_mode="border")[0, :, 0].T
