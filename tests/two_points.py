"""A teacher whose expectations can be integrated: data of two points, in any dimension."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from carv3d.cameras import Cameras
from carv3d.guidance import Branch
from carv3d.teachers import NoiseSchedule
from carv3d.teachers.exact import ExactCondition, posterior_mean


class TwoPointTeacher:
    """The exact denoiser of data that is `first` with probability `share`, else `second` (both (C, h, w))."""

    takes_camera = False
    image_size = 2
    joint_views = 1
    branches: tuple[Branch, ...] = ("cond",)

    def __init__(self, first: Tensor, second: Tensor, share: float = 0.3):
        self.schedule = NoiseSchedule.of_betas("scaled_linear", 0.00085, 0.012, 1000)
        self.points, self.share = torch.stack([first, second]), share
        self.calls: list[int] = []

    def encode(self, rgb: Tensor, rng: torch.Generator | None = None) -> Tensor:
        return rgb

    def condition(self, prompt: str, cameras: Cameras, negative: str = "") -> ExactCondition:
        return self.rows(len(cameras))

    def rows(self, count: int) -> ExactCondition:
        """The condition of `count` renders."""
        log_prior = torch.tensor([self.share, 1 - self.share], dtype=self.points.dtype).log()
        return ExactCondition(self.points.expand(count, -1, -1, -1, -1), log_prior.expand(count, -1))

    def predict(
        self, z_t: Tensor, t: Tensor, condition: ExactCondition, branches: Sequence[Branch]
    ) -> dict[Branch, Tensor]:
        self.calls.append(len(z_t))
        alpha, sigma = self.schedule.at(t, z_t)
        return {"cond": (z_t - alpha * posterior_mean(self.schedule, z_t, t, condition)) / sigma}

    def expectation(self, z: Tensor, p: Tensor, w: Tensor) -> Tensor:
        """E_t,eps[w(t) r] at latents z (C, h, w) under p(t), by Gauss-Hermite quadrature, float64.

        The posterior depends on eps through its projection g ~ N(0, 1) on the line between the points alone:
        r = (alpha / sigma) (z - x_1 - s (x_2 - x_1)), s the posterior share of x_2.
        """
        nodes, weights = np.polynomial.hermite_e.hermegauss(96)
        g, mass = torch.from_numpy(nodes), torch.from_numpy(weights / np.sqrt(2 * np.pi))
        first, second = self.points.double().flatten(1)
        apart, flat = second - first, z.double().flatten()
        total = torch.zeros_like(flat)
        for t in p.nonzero()[:, 0].tolist():
            a2 = self.schedule.alpha[t] ** 2
            alpha, sigma = a2.sqrt(), (1 - a2).sqrt()
            along = alpha * (flat @ apart) + sigma * apart.norm() * g
            logit = (
                np.log((1 - self.share) / self.share)
                + (alpha * along - alpha**2 * (second @ second - first @ first) / 2) / sigma**2
            )
            share = (mass * torch.sigmoid(logit)).sum()
            total += p[t] * w[t] * (alpha / sigma) * (flat - first - share * apart)
        return total.view_as(z)
