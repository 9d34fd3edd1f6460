"""Sample positions along rays through a volume."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rays:
    """Rays through a cube: the part of each ray inside the cube is divided into equal intervals with one sample in
    each.

    Attributes:
        origins: (rays, 3) world units.
        directions: (rays, 3) unit vectors.
        first: (rays,) distance of the first sample, world units.
        length: (rays,) of one interval, which is also from sample to sample, world units; 0 for a miss.
        samples: S, intervals a ray.
    """

    origins: Tensor
    directions: Tensor
    first: Tensor
    length: Tensor
    samples: int

    @classmethod
    def through(
        cls, origins: Tensor, directions: Tensor, bound: float, samples: int, noise: torch.Generator | None
    ) -> Rays:
        """Through the cube [-bound, bound]^3.

        Args:
            origins: (rays, 3) world units.
            directions: (rays, 3) unit vectors.
            bound: half the cube's side, world units.
            samples: S.
            noise: shifts all samples of a ray by one random fraction of an interval; without it samples are midpoints.
        """
        near, far = _cube(origins, directions, bound)
        length = (far - near) / samples
        if noise is None:
            return cls(origins, directions, near + 0.5 * length, length, samples)
        offset = torch.rand(len(near), 1, generator=noise, device=noise.device).to(near)[:, 0]
        return cls(origins, directions, near + offset * length, length, samples)

    def distances(self) -> Tensor:
        """(rays, S) of all samples, world units."""
        order = torch.arange(self.samples, device=self.first.device, dtype=self.first.dtype)
        return torch.addcmul(self.first[:, None], order, self.length[:, None])

    def at(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Ray (M,), distance (M,) and point (M, 3) of the samples at `index` (M,) of rays x S."""
        ray = index // self.samples
        order = (index - ray * self.samples).to(self.first.dtype)
        t = torch.addcmul(self.first.index_select(0, ray), order, self.length.index_select(0, ray))
        # Channel by channel in memory: norms over three contiguous numbers are slow on CPU.
        lines = zip(self.origins.T, self.directions.T, strict=True)
        return ray, t, torch.stack([o[ray] + t * d[ray] for o, d in lines]).T


def _cube(origins: Tensor, directions: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """Where rays (N, 3) enter and leave the cube, (N,) each, from the origin on; both 0 for a miss."""
    low, high = (-bound - origins) / directions, (bound - origins) / directions
    near = torch.minimum(low, high).amax(-1).clamp_min(0)
    far = torch.maximum(low, high).amin(-1)
    # A ray in the plane of a face gives 0 / 0; comparisons with NaN are false, so that it counts as a miss.
    hit = far > near
    return torch.where(hit, near, 0), torch.where(hit, far, 0)
