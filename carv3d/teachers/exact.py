"""A teacher in closed form: the optimal denoiser of a finite set of pictures.

For data that is one of M points x_i with prior weights pi_i, the posterior mean is
`E[x_0 | x_t] = sum_i softmax_i(log pi_i - |x_t - alpha x_i|^2 / 2 sigma^2) x_i`. Its expectations can be integrated
numerically; the tests compare the estimator with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from carv3d.cameras import Cameras, CameraSampler
from carv3d.cameras.config import CameraConfig
from carv3d.guidance import Branch
from carv3d.shapes import Thing, parse, reference
from carv3d.teachers.config import ExactTeacherConfig
from carv3d.teachers.schedule import NoiseSchedule


@dataclass(frozen=True)
class ExactCondition:
    """The candidate pictures of each view, and their log prior weights.

    Attributes:
        points: (R, M, C, h, w).
        log_prior: (R, M).
    """

    points: Tensor
    log_prior: Tensor

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, rows: Tensor) -> ExactCondition:
        return ExactCondition(self.points[rows], self.log_prior[rows])


def posterior_mean(schedule: NoiseSchedule, z_t: Tensor, t: Tensor, condition: ExactCondition) -> Tensor:
    """E[x_0 | x_t = z_t], (N, C, h, w)."""
    alpha, sigma = schedule.at(t, condition.points)
    distance = (z_t[:, None] - alpha * condition.points).flatten(2).square().sum(2)
    weight = torch.softmax(condition.log_prior - distance / (2 * sigma.flatten(1) ** 2), 1)
    return torch.einsum("nm,nmchw->nchw", weight, condition.points)


class ExactTeacher:
    """The exact teacher of an object of the built-in world. It works on pictures, pooled to `image_size`. The
    candidates of a view are the reference pictures from nearby cameras; their prior weight falls with the angle.
    """

    takes_camera = True
    joint_views = 1
    branches: tuple[Branch, ...] = ("cond",)

    def __init__(
        self,
        config: ExactTeacherConfig | None = None,
        *,
        image_size: int = 32,
        device: torch.device | str = "cpu",
    ):
        """Pictures are `image_size` pixels square; no config is the default config."""
        self.schedule = NoiseSchedule.of_betas("scaled_linear", 0.00085, 0.012, 1000).to(device)
        self.image_size = image_size
        self.config = config or ExactTeacherConfig()
        self._pictures: dict[Thing, tuple[Tensor, Tensor]] = {}

    def encode(self, rgb: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """(R, 3, H, W) in [0, 1] to (R, 3, size, size) in [-1, 1]."""
        return F.interpolate(rgb, self.image_size, mode="area") * 2 - 1

    def decode(self, z: Tensor) -> Tensor:
        """The inverse of `encode` at its own size."""
        return (z * 0.5 + 0.5).clamp(0, 1)

    def condition(self, prompt: str, cameras: Cameras, negative: str = "") -> ExactCondition:
        """The nearest reference pictures of each camera; the negative prompt is ignored."""
        points, directions = self._references(parse(prompt))
        own = F.normalize(cameras.c2w[:, :3, 3], dim=-1).to(points.device)
        cosine, nearest = (own @ directions.T).topk(min(self.config.neighbours, len(points)), dim=1)
        return ExactCondition(points[nearest], self.config.concentration * (cosine - 1))

    def predict(
        self, z_t: Tensor, t: Tensor, condition: ExactCondition, branches: Sequence[Branch]
    ) -> dict[Branch, Tensor]:
        """See `ScoreModel.predict`: the exact noise of the conditional model; there is no unconditional one."""
        alpha, sigma = self.schedule.at(t, z_t)
        return {"cond": (z_t - alpha * posterior_mean(self.schedule, z_t, t, condition)) / sigma}

    def _references(self, thing: Thing) -> tuple[Tensor, Tensor]:
        if thing not in self._pictures:
            cameras = CameraSampler(CameraConfig()).sample(self.config.views, torch.Generator().manual_seed(0))
            parts = [reference(thing, cameras[i : i + 20])[0] for i in range(0, self.config.views, 20)]
            device = self.schedule.device
            directions = F.normalize(cameras.c2w[:, :3, 3], dim=-1)
            self._pictures[thing] = self.encode(torch.cat(parts)).to(device), directions.to(device)
        return self._pictures[thing]
