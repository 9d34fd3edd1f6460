"""The quality of a generator of the built-in world, where the true pictures are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from carv3d.cameras import Cameras, CameraSampler
from carv3d.cameras.config import CameraConfig
from carv3d.shapes import ALL_THINGS, Gallery, assorted
from carv3d.teachers import Teacher

AZIMUTHS, ELEVATIONS = [20.0, 110.0, -160.0, -70.0], [15.0, 30.0, 15.0, 30.0]
_POOLED = 8  # latents along a side of the squares that are averaged to a feature

# (prompts N, cameras N, rng) -> latents (N, C, h, w)
Sampler = Callable[[Sequence[str], Cameras, torch.Generator], Tensor]


@dataclass(frozen=True)
class Quality:
    """The figures of a generator.

    Attributes:
        retrieval: share of 192 samples, every class in three colours, whose nearest true picture among all objects in
            all colours is of the object asked for: from the same camera if the generator takes it, else from any of
                the gallery's cameras.
        psnr: dB, of the same samples to that nearest picture; of unknown cameras after averaging over 4 x 4 pixels.
        frechet: see `frechet_distance`, on `features`, between samples of random objects and their true pictures.
    """

    retrieval: float
    psnr: float
    frechet: float


class Examiner:
    """Examines generators with the same prompts, cameras and noise, against the true pictures.

    Attributes:
        floor: the Fréchet distance between true pictures of the same objects from different cameras, which is
            positive because the number of pictures is finite.
    """

    def __init__(
        self, teacher: Teacher, *, camera: bool, pictures: int = 480, views: tuple[int, int] = (16, 5)
    ) -> None:
        """Render all objects, which takes half a minute.

        Args:
            teacher: whose autoencoder gives the features.
            camera: whether the generators take the camera.
            pictures: for the Fréchet distance.
            views: cameras of the gallery in azimuth and in elevation.
        """
        self.teacher, self.camera = teacher, camera
        rng = torch.Generator().manual_seed(0)
        self._all = Gallery(CameraSampler(CameraConfig()).table(*views, rng))
        self._told = Gallery(Cameras.look_at_origin(torch.tensor(AZIMUTHS), torch.tensor(ELEVATIONS)))
        things = torch.randint(len(ALL_THINGS), (pictures,), generator=rng).tolist()
        self._things = [ALL_THINGS[i] for i in things]
        self._cameras, self._true = self._draw(rng)
        self.floor = frechet_distance(self._draw(rng)[1], self._true)

    def __call__(self, sampler: Sampler, seed: int = 0) -> Quality:
        """Examine a generator."""
        rng = torch.Generator().manual_seed(seed)
        cameras, asked = self._told.cameras, [thing for thing in assorted() for _ in self._told.cameras.azimuth]
        shown = torch.cat(
            [
                self.teacher.decode(sampler([thing.caption] * len(cameras), cameras, rng))
                for thing in asked[:: len(cameras)]
            ]
        )
        if self.camera:
            each = [self._told.errors(four) for four in shown.split(len(cameras))]
            found = [ALL_THINGS[i] for four in each for i in four.argmin(0).tolist()]
            errors = torch.cat([four.amin(0) for four in each])
        else:
            found, errors = self._all.nearest_anywhere(shown)
        right = sum(one == thing for one, thing in zip(found, asked, strict=True))
        parts = torch.arange(len(self._things)).split(32)
        drawn = [sampler([self._things[i].caption for i in part.tolist()], self._cameras[part], rng) for part in parts]
        psnr = -10 * errors.mean().log10().item()
        return Quality(right / len(asked), psnr, frechet_distance(features(torch.cat(drawn)), self._true))

    @torch.no_grad()
    def _draw(self, rng: torch.Generator) -> tuple[Cameras, Tensor]:
        """Random cameras of the gallery, one for each object, and the features of their pictures."""
        cameras = self._all.cameras
        which = torch.randint(len(cameras), (len(self._things),), generator=rng)
        pictures = [self._all.picture(t, v) for t, v in zip(self._things, which.tolist(), strict=True)]
        z = torch.cat([self.teacher.encode(part) for part in torch.stack(pictures).split(32)])
        return cameras[which], features(z)


def features(z: Tensor) -> Tensor:
    """(N, F) float64: latents (N, C, h, w) averaged over squares of 8 x 8: 32 of the built-in autoencoder."""
    return F.avg_pool2d(z, _POOLED).flatten(1).double()


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """`|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))` of the Gaussians fitted to features (N, F) and (M, F).

    The distance of Heusel et al. (arXiv 1706.08500), for any features. Only figures with the same features, N and M
    can be compared. The trace of the root is computed from `C_a^(1/2) C_b C_a^(1/2)`, which has the same
    eigenvalues and is symmetric.
    """
    a, b = a.double(), b.double()
    covariance_a, covariance_b = torch.cov(a.T), torch.cov(b.T)
    values, vectors = torch.linalg.eigh(covariance_a)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ covariance_b @ root).clamp_min(0).sqrt().sum()
    means = (a.mean(0) - b.mean(0)).square().sum()
    return float(means + covariance_a.trace() + covariance_b.trace() - 2 * cross)
