"""The set of (t, eps) draws that all training pictures and all queries share."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from carv3d.loss import timestep_range
from carv3d.sampling import draw, proposal, uniform_pmf


@dataclass(frozen=True)
class SharedDraws:
    """B draws that all pictures share.

    Attributes:
        t: (B,) long.
        eps: (B, C, h, w) float32.
    """

    t: Tensor
    eps: Tensor

    @classmethod
    def of(
        cls,
        count: int,
        shape: tuple[int, int, int],
        timesteps: int,
        rng: torch.Generator,
        *,
        t_range: tuple[float, float] = (0.02, 0.98),
        strata: Literal["none", "global"] = "global",
        coupling: str = "independent",
    ) -> SharedDraws:
        """Draw them like `count` resamples of one render (`carv3d.sampling.draw`).

        Timesteps are uniform on the range, in one stratum each with strata="global" (CARV, arXiv 2605.21489, section
        on data attribution). There is no importance sampling: a cosine does not depend on the gradient's norm or on
        the weight w(t), so that all draws have equal weight. The paper also finds that the norms hardly depend on t.

        Args:
            count: B.
            shape: of one picture's latents.
            timesteps: T, of the teacher's schedule.
            rng: generator of all draws, on the device of the draws.
            t_range: smallest and largest timestep, as fractions of the schedule.
            strata: one draw a stratum, or independent ones.
            coupling: of the noises.
        """
        p = uniform_pmf(timesteps, *timestep_range(t_range, timesteps))
        q = proposal(p, torch.ones_like(p), "uniform").to(rng.device)
        found = draw(1, count, shape, q, rng, torch.float32, strata=strata, coupling=coupling)
        return cls(found.t[0], found.eps[0])

    def __len__(self) -> int:
        """B."""
        return len(self.t)

    def digest(self) -> str:
        """SHA-256 of the draws."""
        found = hashlib.sha256(self.t.cpu().numpy().tobytes())
        found.update(self.eps.cpu().numpy().tobytes())
        return found.hexdigest()
