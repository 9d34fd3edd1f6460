"""Cameras: where the renders are taken from.

World: right-handed, z up; azimuth 0 looks at the object from +x (its front), azimuth 90 from +y; elevation
is measured up from the xy plane. Camera axes are OpenGL's: x right, y up, looking along -z.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from carv3d.system.transfer import sent


@dataclass(frozen=True)
class Cameras:
    """A batch of R pinhole cameras that look at the origin.

    Attributes:
        c2w: (R, 4, 4) camera-to-world matrices.
        intrinsics: (R, 3, 3) in pixels: fx, 0, cx; 0, fy, cy; 0, 0, 1.
        azimuth, elevation: (R,) degrees.
        distance: (R,) world units from the origin.
        height, width: image size in pixels.
    """

    c2w: Tensor
    intrinsics: Tensor
    azimuth: Tensor
    elevation: Tensor
    distance: Tensor
    height: int
    width: int

    @classmethod
    def look_at_origin(
        cls,
        azimuth: Tensor,
        elevation: Tensor,
        distance: Tensor | float = 3.0,
        fov: Tensor | float = 40.0,
        height: int = 64,
        width: int = 64,
    ) -> Cameras:
        """Cameras on a sphere around the origin.

        Args:
            azimuth, elevation: (R,) degrees; elevation strictly between -90 and 90.
            distance: (R,) or one number, world units.
            fov: (R,) or one number, vertical field of view in degrees.
            height, width: pixels.
        """
        azimuth, elevation = azimuth.float(), elevation.float()
        distance = torch.as_tensor(distance, dtype=azimuth.dtype, device=azimuth.device).expand_as(azimuth)
        fov = torch.as_tensor(fov, dtype=azimuth.dtype, device=azimuth.device).expand_as(azimuth)
        a, e = azimuth.deg2rad(), elevation.deg2rad()
        backward = torch.stack([e.cos() * a.cos(), e.cos() * a.sin(), e.sin()], -1)
        right = torch.stack([-a.sin(), a.cos(), torch.zeros_like(a)], -1)
        up = torch.linalg.cross(backward, right)
        c2w = torch.zeros(len(azimuth), 4, 4, dtype=azimuth.dtype, device=azimuth.device)
        c2w[:, :3, :3] = torch.stack([right, up, backward], -1)
        c2w[:, :3, 3] = backward * distance[:, None]
        c2w[:, 3, 3] = 1
        focal = 0.5 * height / (0.5 * fov.deg2rad()).tan()
        intrinsics = torch.zeros(len(azimuth), 3, 3, dtype=azimuth.dtype, device=azimuth.device)
        intrinsics[:, 0, 0] = intrinsics[:, 1, 1] = focal
        intrinsics[:, 0, 2], intrinsics[:, 1, 2], intrinsics[:, 2, 2] = width / 2, height / 2, 1
        return cls(c2w, intrinsics, azimuth, elevation, distance, height, width)

    def __len__(self) -> int:
        return len(self.azimuth)

    def __getitem__(self, index: slice | Tensor) -> Cameras:
        return Cameras(
            self.c2w[index],
            self.intrinsics[index],
            self.azimuth[index],
            self.elevation[index],
            self.distance[index],
            self.height,
            self.width,
        )

    def ring(self, count: int) -> Cameras:
        """R * count cameras: each camera followed by count - 1 others at its height, evenly around the object."""
        turn = torch.arange(count, device=self.azimuth.device) * (360.0 / count)
        rotation = torch.zeros(count, 4, 4, dtype=self.c2w.dtype, device=self.c2w.device)
        rotation[:, 0, 0] = rotation[:, 1, 1] = turn.deg2rad().cos()
        rotation[:, 1, 0], rotation[:, 0, 1] = turn.deg2rad().sin(), -turn.deg2rad().sin()
        rotation[:, 2, 2] = rotation[:, 3, 3] = 1
        rows = torch.arange(len(self), device=self.azimuth.device).repeat_interleave(count)
        found = self[rows]
        azimuth = (found.azimuth + turn.repeat(len(self)) + 180) % 360 - 180
        return replace(found, c2w=rotation.repeat(len(self), 1, 1) @ found.c2w, azimuth=azimuth)

    def to(self, device: torch.device | str) -> Cameras:
        """The same cameras on another device."""
        return Cameras(
            sent(self.c2w, device),
            sent(self.intrinsics, device),
            sent(self.azimuth, device),
            sent(self.elevation, device),
            sent(self.distance, device),
            self.height,
            self.width,
        )

    def rays(self) -> tuple[Tensor, Tensor]:
        """One ray through every pixel centre; row 0 is the top of the image.

        Returns:
            origins (R, H, W, 3) and unit directions (R, H, W, 3), world space.
        """
        device, dtype = self.c2w.device, self.c2w.dtype
        x = torch.arange(self.width, device=device, dtype=dtype) + 0.5
        y = torch.arange(self.height, device=device, dtype=dtype) + 0.5
        fx, fy = self.intrinsics[:, 0, 0, None, None], self.intrinsics[:, 1, 1, None, None]
        cx, cy = self.intrinsics[:, 0, 2, None, None], self.intrinsics[:, 1, 2, None, None]
        u = ((x[None, None, :] - cx) / fx).expand(-1, self.height, -1)
        v = (-(y[None, :, None] - cy) / fy).expand(-1, -1, self.width)
        local = torch.stack([u, v, -torch.ones_like(u)], -1)
        directions = torch.nn.functional.normalize(local @ self.c2w[:, None, :3, :3].mT, dim=-1)
        origins = self.c2w[:, None, None, :3, 3].expand_as(directions)
        return origins, directions


def joined(parts: Sequence[Cameras]) -> Cameras:
    """All cameras of the parts, which have pictures of one size."""
    names = ("c2w", "intrinsics", "azimuth", "elevation", "distance")
    tensors: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
    return replace(parts[0], **tensors)


def orbit(
    count: int,
    elevation: float | Sequence[float] = 15.0,
    *,
    start: float = 0.0,
    distance: float = 3.0,
    fov: float = 40.0,
    height: int = 64,
    width: int = 64,
) -> Cameras:
    """`count` cameras evenly spaced in azimuth, from `start` degrees.

    `elevation` is one number, or a sequence of `count` numbers, in degrees.
    """
    azimuth = start + torch.arange(count, dtype=torch.float64) * (360.0 / count)
    azimuth = (azimuth + 180.0) % 360.0 - 180.0
    elevations = torch.as_tensor(elevation, dtype=torch.float64).expand(count)
    return Cameras.look_at_origin(azimuth, elevations, distance, fov, height, width)
