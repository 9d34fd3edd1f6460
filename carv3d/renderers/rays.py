"""Where along its ray a volume is sampled."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rays:
    """Rays through a cube: each one's stretch inside is cut into equal intervals with one sample in each.

    Attributes:
        origins: (rays, 3) world units.
        directions: (rays, 3) unit vectors.
        near: (rays,) distance at which the first interval begins, world units; 0 for a miss.
        length: (rays,) of one interval, world units; 0 for a ray that misses the cube.
        offset: (rays,) where in each of a ray's intervals its sample lies, in [0, 1).
        samples: S, intervals a ray.
    """

    origins: Tensor
    directions: Tensor
    near: Tensor
    length: Tensor
    offset: Tensor
    samples: int

    @classmethod
    def through(
        cls, origins: Tensor, directions: Tensor, bound: float, samples: int, noise: torch.Generator | None
    ) -> Rays:
        """Through the cube [-bound, bound]^3; without `noise` the samples are the intervals' midpoints."""
        near, far = _cube(origins, directions, bound)
        if noise is None:
            offset = near.new_full((1,), 0.5).expand_as(near)
        else:
            offset = torch.rand(len(near), 1, generator=noise, device=noise.device).to(near)[:, 0]
        return cls(origins, directions, near, (far - near) / samples, offset, samples)

    def distances(self) -> Tensor:
        """(rays, S) of all samples, world units."""
        order = torch.arange(self.samples, device=self.near.device, dtype=self.near.dtype)
        starts = torch.addcmul(self.near[:, None], order, self.length[:, None])
        return torch.addcmul(starts, self.offset[:, None], self.length[:, None])

    def at(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Ray (M,), distance (M,) and point (M, 3) of the samples at `index` (M,) of rays x S."""
        ray = index // self.samples
        length = self.length[ray]
        t = self.near[ray] + (index - ray * self.samples) * length + self.offset[ray] * length
        # Channel by channel in memory: norms over three contiguous numbers are slow on CPU.
        points = [o[ray] + t * d[ray] for o, d in zip(self.origins.T, self.directions.T, strict=True)]
        return ray, t, torch.stack(points).T


def _cube(origins: Tensor, directions: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """Where rays (N, 3) enter and leave the cube, (N,) each, from the origin on; both 0 for a miss."""
    low, high = (-bound - origins) / directions, (bound - origins) / directions
    near = torch.minimum(low, high).amax(-1).clamp_min(0)
    far = torch.maximum(low, high).amin(-1)
    # A ray that lies in a face's plane gives 0 / 0; a comparison with NaN is false, so it counts as a miss.
    hit = far > near
    return torch.where(hit, near, 0), torch.where(hit, far, 0)
