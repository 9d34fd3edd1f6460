"""Algorithm 1 of CARV (arXiv 2605.21489): from a render's latents to its averaged residual.

    for each render r = 1..R:                                  z_r is rendered and encoded once
        for b = 1..K:   u_b = (b - 1 + xi_b) / K,  xi_b ~ U[0, 1)
                        t_b = CDF_q^{-1}(u_b),     eps_b ~ N(0, I)
                        r_b = eps_hat(alpha_t z_r + sigma_t eps_b, t_b, c; omega) - eps_b
        fbar_r = 1/K sum_b (p/q)(t_b) w_SDS(t_b) r_b
    return 1/R sum_r fbar_r dz_r/dtheta                        one backward pass

This file computes fbar_r from draws (t_b, eps_b) that `carv3d.sampling` makes; `carv3d.loss.surrogate` has the last
line as its gradient. The residual r_b is the objective's: the formula above is SDS, `carv3d.objectives` has others.
The teacher's Jacobian is dropped, as SDS does. Plain SDS is K = 1 with the uniform proposal. Nothing is
self-normalised or clipped: for any q that covers `p w`, the expectation is that of plain draws.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from carv3d.sampling import Draws, Proposal

log = logging.getLogger(__name__)

# (z (N, ...), t (N,), eps (N, ...), r (N,)) -> r_b (N, ...): the residual of N draws; r[n] is the render of draw n.
Residual = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Estimate:
    """What one call used and found.

    Attributes:
        fbar: (R, *latent shape) the averaged, weighted residual of each render.
        draws: t (R, K) and eps (R, K, *latent shape).
        ratio: (R, K) float64, p/q.
        norm: (R, K) float32, the norm of each weighted residual; not finite where the residual was not.
        chunk: as given, or less where memory ran out.
    """

    fbar: Tensor
    draws: Draws
    ratio: Tensor
    norm: Tensor
    chunk: int = 0

    def effective_sample_size(self) -> Tensor:
        """Kish's `(sum |f|)^2 / sum |f|^2` over the R K weighted residuals f: between 1 and R K."""
        return self.norm.sum() ** 2 / self.norm.square().sum()

    def noise_share(self) -> Tensor:
        """The share of |fbar|^2 that is noise of the draws, 0 to 1, computed as if the K draws of a render were
        independent.

        Then `E |fbar|^2 = |E fbar|^2 + V / K` and `mean_k E |f_k|^2 = |E fbar|^2 + V`, which gives V. Coupled and
        stratified draws have less noise than this. nan for K = 1.
        """
        K = self.norm.shape[1]
        single = self.norm.double().square().mean()
        averaged = self.fbar.flatten(1).double().square().sum(1).mean()
        return ((single / averaged - 1) / (K - 1)).clamp(0, 1) if K > 1 else torch.full_like(single, torch.nan)


@torch.no_grad()
def estimate(z: Tensor, residual: Residual, q: Proposal, w: Tensor, draws: Draws, *, chunk: int = 0) -> Estimate:
    """The averaged residual of each render, from K resamples that share its latents.

    Args:
        z: (R, *shape) latents; no gradient flows through them here.
        residual: of a batch of draws.
        q: the proposal that the draws are from, with its ratio p/q.
        w: (T,) w_SDS(t), float64.
        draws: of the R renders, see `carv3d.sampling.draw`.
        chunk: most draws in one call of `residual`; 0 for all R K. Changes nothing beyond rounding. Halved where
            memory runs out.

    Raises:
        ValueError: chunk < 0, or draws of other renders than z.
        torch.OutOfMemoryError: one draw alone does not fit.
    """
    R, K = draws.t.shape
    if chunk < 0:
        raise ValueError(f"chunk must be at least 0, not {chunk}")
    if draws.eps.shape != (R, K, *z.shape[1:]) or len(z) != R:
        raise ValueError(f"draws of shape {tuple(draws.eps.shape)} do not fit latents of shape {tuple(z.shape)}")
    r = torch.arange(R, device=z.device).repeat_interleave(K)
    t, eps = draws.t.flatten(), draws.eps.flatten(0, 1)
    ratio = q.ratio[draws.t]

    parts, done = [], 0
    while done < R * K:
        n = slice(done, done + chunk if chunk else R * K)
        try:
            parts.append(residual(z[r[n]], t[n], eps[n], r[n]))
            done += len(parts[-1])
            continue
        except torch.OutOfMemoryError:
            size = len(t[n])
            if size == 1:
                raise
        chunk = (size + 1) // 2
        log.info("out of memory with %d draws in one call of the teacher: from now on %d", size, chunk)
        torch.cuda.empty_cache()
    f = torch.cat(parts)
    f = f * (ratio * w[draws.t]).flatten().to(f.dtype).view(-1, *[1] * (f.ndim - 1))

    f = f.unflatten(0, (R, K))
    return Estimate(f.mean(1), draws, ratio, f.flatten(2).float().norm(dim=2), chunk)
