"""Where training renders are taken from: samplers of cameras."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from carv3d.cameras.cameras import Cameras, orbit
from carv3d.cameras.config import CameraConfig
from carv3d.system.transfer import sent

Range = tuple[float, float]


def _pair(low_high: Sequence[float]) -> Range:
    low, high = low_high
    return low, high


def _uniform(low_high: Sequence[float], count: int, generator: torch.Generator) -> Tensor:
    return _within(low_high, torch.rand(count, generator=generator, device=generator.device, dtype=torch.float64))


def _within(low_high: Sequence[float], share: Tensor) -> Tensor:
    low, high = low_high
    return low + (high - low) * share


# 1 / g and 1 / g^2 with g the real root of g^3 = g + 1: the R2 sequence (Roberts, 2018), which fills a square evenly
# for any number of points.
_R2 = (0.7548776662466927, 0.5698402909980532)


def sequence_points(first: int, count: int, offset: Tensor) -> Tensor:
    """Points `first` to `first + count - 1` of the R2 sequence, for offsets (..., 2): (..., count, 2) in [0, 1)."""
    index = torch.arange(first, first + count, dtype=torch.float64)[:, None]
    return (offset[..., None, :] + index * torch.tensor(_R2, dtype=torch.float64)) % 1


class Sampler(ABC):
    """A sampler of training cameras. A plug-in implements `sample`, and sets the image size.

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
        """Cameras with the distribution of those of one step, independent of the run's cameras."""
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


class CameraSampler(Sampler):
    """Draws independent cameras, each angle uniform in its range.

    Args:
        config: the ranges and the image size.
    """

    def __init__(self, config: CameraConfig) -> None:
        self.config = config
        self.distance, self.fov = _pair(config.distance), _pair(config.fov)
        self.height, self.width = config.height, config.width

    def sample(self, count: int, generator: torch.Generator) -> Cameras:
        """See `Sampler`."""
        azimuth = _uniform(self.config.azimuth, count, generator)
        elevation = _uniform(self.config.elevation, count, generator)
        return self._at(azimuth, elevation, generator)

    def table(self, rows: int, columns: int, generator: torch.Generator) -> Cameras:
        """See `Sampler`."""
        x, y = ((torch.arange(n, dtype=torch.float64, device=generator.device) + 0.5) / n for n in (rows, columns))
        azimuth = _within(self.config.azimuth, x.repeat_interleave(columns))
        return self._at(azimuth, _within(self.config.elevation, y.repeat(rows)), generator)

    @property
    def full_turn(self) -> bool:
        """See `Sampler`."""
        return self.config.azimuth[1] - self.config.azimuth[0] == 360

    def _at(self, azimuth: Tensor, elevation: Tensor, generator: torch.Generator) -> Cameras:
        count = len(azimuth)
        distance = _uniform(self.distance, count, generator).float()
        fov = _uniform(self.fov, count, generator).float()
        return Cameras.look_at_origin(azimuth, elevation, distance, fov, self.height, self.width)


class SequenceSampler(CameraSampler):
    """Draws the cameras of a run from a sequence whose angles fill their ranges evenly.

    A step's renders and those of the steps around it see different sides. The sequence has a random offset, a function
    of the seed, so that every camera has the distribution of `sample`.

    Args:
        config: the ranges and the image size.
        seed: of the run.
    """

    def __init__(self, config: CameraConfig, seed: int = 0) -> None:
        super().__init__(config)
        self.seed = seed

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
        azimuth, elevation = sent(sequence_points(first, count, offset), generator.device).T
        return self._at(_within(self.config.azimuth, azimuth), _within(self.config.elevation, elevation), generator)
