"""What a renderer returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class RaySamples:
    """The samples that a volume renderer took, for the regularisers that look inside the volume.

    Of the rays x S samples only M were asked of the scene: those in cells that may hold something.

    Attributes:
        weights: (rays, S) contribution of each sample to its pixel; a row sums to the pixel's opacity. Rays
            are the pixels of all R images, row by row.
        index: (M,) where the samples asked of the scene lie in `weights.view(-1)`, increasing.
        directions: (rays, 3) unit vectors from the camera.
        normals: (M, 3) the density's unit normals, or None if not asked for.
    """

    weights: Tensor
    index: Tensor
    directions: Tensor
    normals: Tensor | None


@dataclass
class Render:
    """R images of one scene.

    Attributes:
        rgb: (R, 3, H, W) in [0, 1], composited on the background.
        opacity: (R, 1, H, W) in [0, 1].
        depth: (R, 1, H, W) expected distance along the ray given that it hits, world units; beyond the scene
            where nothing is hit.
        normal: (R, 3, H, W) world space, weighted by opacity (so its length is at most that), or None.
        samples: what lies behind the pixels, or None from a renderer without rays.
    """

    rgb: Tensor
    opacity: Tensor
    depth: Tensor
    normal: Tensor | None
    samples: RaySamples | None
