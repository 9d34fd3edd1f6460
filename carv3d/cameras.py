"""Cameras: where the renders are taken from.

World: right-handed, z up; azimuth 0 looks at the object from +x (its front), azimuth 90 from +y; elevation
is measured up from the xy plane. Camera axes are OpenGL's: x right, y up, looking along -z.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Range = tuple[float, float]


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
        """R * count cameras: each with count - 1 others at its height, evenly around the object, one after another."""
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
            self.c2w.to(device),
            self.intrinsics.to(device),
            self.azimuth.to(device),
            self.elevation.to(device),
            self.distance.to(device),
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


def _uniform(low_high: Range, count: int, generator: torch.Generator) -> Tensor:
    return _within(low_high, torch.rand(count, generator=generator, device=generator.device, dtype=torch.float64))


def _within(low_high: Range, share: Tensor) -> Tensor:
    low, high = low_high
    return low + (high - low) * share


# 1 / g and 1 / g^2 with g the real root of g^3 = g + 1: the R2 sequence (Roberts, 2018), which fills a square evenly
# whatever number of its points one takes.
_R2 = (0.7548776662466927, 0.5698402909980532)


def sequence_points(first: int, count: int, offset: Tensor) -> Tensor:
    """Points `first` to `first + count - 1` of the R2 sequence, for offsets (..., 2): (..., count, 2) in [0, 1)."""
    index = torch.arange(first, first + count, dtype=torch.float64)[:, None]
    return (offset[..., None, :] + index * torch.tensor(_R2, dtype=torch.float64)) % 1


class Sampler(ABC):
    """Where training renders are taken from. A plug-in has `sample`, and sets the image size.

    Attributes:
        height, width: image size in pixels.
        distance, fov: (low, high) in world units and degrees; previews are taken from their middles.
        full_turn: whether the azimuth's range closes on itself.
    """

    height: int = 64
    width: int = 64
    distance: Range = (3.0, 3.0)
    fov: Range = (40.0, 40.0)

    @abstractmethod
    def sample(self, count: int, generator: torch.Generator) -> Cameras:
        """`count` independent cameras from the generator, on the generator's device."""

    def of_step(self, step: int, count: int, generator: torch.Generator) -> Cameras:
        """The cameras of one training step.

        Args:
            step: of the run, counted from 0.
            count: R.
            generator: of the run, on whose device the cameras are.
        """
        return self.sample(count, generator)

    def of_other_run(self, count: int, generator: torch.Generator) -> Cameras:
        """Cameras with the distribution of one step's, independent of the run's own."""
        return self.sample(count, generator)

    def table(self, rows: int, columns: int, generator: torch.Generator) -> Cameras | None:
        """Cameras at the centres of rows x columns cells of the angles' ranges, row by row; None if it has none."""
        return None

    @property
    def full_turn(self) -> bool:
        """See the class."""
        return True

    def around(self, count: int, elevation: float, size: int) -> Cameras:
        """Cameras around the object at the middle distance and field of view, `size` pixels square."""
        distance, fov = sum(self.distance) / 2, sum(self.fov) / 2
        return orbit(count, elevation, distance=distance, fov=fov, height=size, width=size)


@dataclass(frozen=True)
class CameraSampler(Sampler):
    """Draws independent cameras, each angle uniform in its range.

    Attributes:
        azimuth, elevation, fov: (low, high) in degrees.
        distance: (low, high) in world units.
        height, width: image size in pixels.
    """

    azimuth: Range = (-180.0, 180.0)
    elevation: Range = (-10.0, 80.0)
    distance: Range = (3.0, 3.0)
    fov: Range = (40.0, 40.0)
    height: int = 64
    width: int = 64

    def sample(self, count: int, generator: torch.Generator) -> Cameras:
        """See `Sampler`."""
        azimuth = _uniform(self.azimuth, count, generator)
        elevation = _uniform(self.elevation, count, generator)
        return self._at(azimuth, elevation, generator)

    def table(self, rows: int, columns: int, generator: torch.Generator) -> Cameras:
        """See `Sampler`."""
        x, y = ((torch.arange(n, dtype=torch.float64, device=generator.device) + 0.5) / n for n in (rows, columns))
        azimuth = _within(self.azimuth, x.repeat_interleave(columns))
        return self._at(azimuth, _within(self.elevation, y.repeat(rows)), generator)

    @property
    def full_turn(self) -> bool:
        """See `Sampler`."""
        return self.azimuth[1] - self.azimuth[0] == 360

    def _at(self, azimuth: Tensor, elevation: Tensor, generator: torch.Generator) -> Cameras:
        count = len(azimuth)
        distance = _uniform(self.distance, count, generator).float()
        fov = _uniform(self.fov, count, generator).float()
        return Cameras.look_at_origin(azimuth, elevation, distance, fov, self.height, self.width)


@dataclass(frozen=True)
class SequenceSampler(CameraSampler):
    """Draws the cameras of a run from a sequence whose angles fill their ranges evenly.

    A step's renders and those of the steps around it see different sides. The sequence has a random offset, a function
    of the seed, so that every camera has the distribution of `sample`.

    Attributes:
        seed: of the run.
    """

    seed: int = 0

    def of_step(self, step: int, count: int, generator: torch.Generator) -> Cameras:
        """See `Sampler`; `generator` draws distance and field of view alone."""
        offset = torch.rand(2, generator=torch.Generator().manual_seed(self.seed), dtype=torch.float64)
        return self.sequence(step * count, count, offset, generator)

    def of_other_run(self, count: int, generator: torch.Generator) -> Cameras:
        """See `Sampler`: of a sequence with another offset, since the R of one step depend on each other."""
        offset = torch.rand(2, generator=generator, device=generator.device, dtype=torch.float64).cpu()
        return self.sequence(0, count, offset, generator)

    def sequence(self, first: int, count: int, offset: Tensor, generator: torch.Generator) -> Cameras:
        """Cameras `first` to `first + count - 1` of a sequence.

        Args:
            first: how many cameras of the sequence have been taken.
            count: how many to take.
            offset: (2,) float64 in [0, 1), one a run.
            generator: of distance and field of view, and whose device the cameras are on.
        """
        azimuth, elevation = sequence_points(first, count, offset).to(generator.device).T
        return self._at(_within(self.azimuth, azimuth), _within(self.elevation, elevation), generator)


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
