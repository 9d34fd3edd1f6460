"""What tests of the estimator and of teachers share: one residual of SDS, one estimate of any residual."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from carv3d.config.keys import Strata
from carv3d.estimator import Estimate, Residual, estimate
from carv3d.guidance import Unguided, guidance_of
from carv3d.objectives import Draw
from carv3d.objectives.sds import Sds
from carv3d.sampling import Proposal, draw


@torch.no_grad()
def sds(model: Any, z: Tensor, t: Tensor, eps: Tensor, condition: Any, scale: float, perp_neg: bool = False) -> Tensor:
    """`eps_guided - eps` of N draws."""
    guidance = guidance_of(scale, perp_neg=perp_neg) if "uncond" in model.branches else Unguided()
    return Sds().residual(Draw(model, guidance, z, t, eps, condition))


def averaged(
    z: Tensor,
    residual: Residual,
    q: Proposal,
    w: Tensor,
    K: int,
    rng: torch.Generator,
    *,
    strata: Strata = "render",
    coupling: str = "independent",
    chunk: int = 0,
) -> Estimate:
    """The estimate of freshly drawn resamples."""
    draws = draw(len(z), K, z.shape[1:], q, rng, z.dtype, strata=strata, coupling=coupling)
    return estimate(z, residual, q, w, draws, chunk=chunk)
