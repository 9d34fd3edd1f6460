"""Sampling from a teacher."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from carv3d.guidance import guidance_of
from carv3d.teachers.base import ScoreModel


@torch.no_grad()
def ddim_sample(
    teacher: ScoreModel,
    condition: Any,
    shape: tuple[int, ...],
    rng: torch.Generator,
    *,
    scale: float = 3.0,
    steps: int = 30,
) -> Tensor:
    """Latents by deterministic DDIM (Song et al., arXiv 2010.02502, equation 12 with eta = 0); of a flow, by Euler.

    Args:
        teacher: the model.
        condition: of N rows.
        shape: (N, C, h, w) of the latents.
        rng: draws the starting noise, on the teacher's device.
        scale: classifier-free guidance.
        steps: network evaluations.
    """
    schedule, guidance = teacher.schedule, guidance_of(scale)
    z = torch.randn(shape, generator=rng, device=rng.device)
    last = int(schedule.alpha.nonzero()[-1])  # in pure noise, where flows end, z cannot be computed
    times = torch.linspace(last, 0, steps, device=rng.device).round().long()
    for now, then in zip(times, [*times[1:], None], strict=True):
        t = now.expand(len(z))
        alpha, sigma = schedule.at(t, z)
        eps = guidance(teacher.predict(z, t, condition, guidance.branches), condition)
        clean = (z - sigma * eps) / alpha
        if then is None:
            return clean
        alpha, sigma = schedule.at(then.expand(len(z)), z)
        z = alpha * clean + sigma * eps
    return z
