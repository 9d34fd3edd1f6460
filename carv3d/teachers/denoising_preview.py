"""Pictures of how a teacher denoises a render, to see what the teacher wants to change."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from carv3d.guidance import Guidance
from carv3d.teachers.base import Teacher

SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)  # of the timestep range


@torch.no_grad()
def denoising_preview(
    teacher: Teacher, z: Tensor, condition: Any, p: Tensor, guidance: Guidance, rng: torch.Generator
) -> tuple[Tensor, int]:
    """A row for each of five timesteps: the noised picture, the teacher's one-step denoising of it, and the residual.

    Args:
        teacher: see `Teacher`.
        z: (1, C, h, w) latents of the picture; of views that are judged jointly, (1, V, C, h, w), the first is shown.
        condition: of one row.
        p: (T,) the timesteps in use, equal where it is positive.
        guidance: makes one prediction of the teacher's branches.
        rng: generator of one eps, the same for all rows; on the device of z.

    Returns:
        (5 * 3, 3, H, W) on the CPU in [0, 1], row by row, and the columns, 3. The residual is its norm at each latent,
        black for none and white for the largest in its row.
    """
    support = p.nonzero()[:, 0]
    low, high = int(support[0]), int(support[-1])
    t = torch.tensor([round(low + share * (high - low)) for share in SHARES], device=z.device)
    rows = torch.zeros_like(t)
    eps = torch.randn(z.shape, generator=rng, device=z.device).expand(len(t), *z.shape[1:])
    alpha, sigma = teacher.schedule.at(t, z)
    noised, repeated = alpha * z + sigma * eps, condition[rows]
    found = guidance(teacher.predict(noised, t, repeated, guidance.branches), repeated) - eps
    clean = (noised - sigma * (found + eps)) / alpha
    if z.ndim == 5:
        noised, clean, found, alpha = (x[:, 0] for x in (noised, clean, found, alpha))
    pictures = [teacher.decode(part) for part in (noised / alpha.clamp_min(0.1), clean)]
    size = pictures[0].shape[-2:]
    length = found.norm(dim=1, keepdim=True)
    length = length / length.flatten(1).amax(1).clamp_min(1e-12).view(-1, 1, 1, 1)
    pictures.append(F.interpolate(length, size, mode="nearest").expand(-1, 3, -1, -1))
    return torch.stack(pictures, 1).flatten(0, 1).cpu(), len(pictures)
