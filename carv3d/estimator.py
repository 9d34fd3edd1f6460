"""Algorithm 1 of CARV (arXiv 2605.21489): one render's latents in, one averaged residual out.

    for each render r = 1..R:                                  z_r is rendered and encoded once
        for b = 1..K:   u_b = (b - 1 + xi_b) / K,  xi_b ~ U[0, 1)
                        t_b = CDF_q^{-1}(u_b),     eps_b ~ N(0, I)
                        r_b = eps_hat(alpha_t z_r + sigma_t eps_b, t_b, c; omega) - eps_b
        fbar_r = 1/K sum_b (p/q)(t_b) w_SDS(t_b) r_b
    return 1/R sum_r fbar_r dz_r/dtheta                        one backward pass

This file computes fbar_r; `(z * fbar).sum() / R` is a loss whose gradient is the last line. The teacher's
Jacobian is dropped, as SDS does. Plain SDS is K = 1 with the uniform proposal. Nothing is self-normalised or
clipped: for any q that covers `p w`, the expectation is that of plain SDS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from carv3d.sampling import NoiseKind, Proposal, StrataKind, draws

# (z (N, ...), t (N,), eps (N, ...), r (N,)) -> r_b (N, ...): the residual of N draws; r[n] is the render of draw n.
Residual = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Estimate:
    """What one call drew and found.

    Attributes:
        fbar: (R, *latent shape) the averaged, weighted residual of each render.
        t: (R, K) long, the timesteps.
        ratio: (R, K) float64, p/q.
        norm: (R, K) float32, the norm of each weighted residual; not finite where the teacher was not.
    """

    fbar: Tensor
    t: Tensor
    ratio: Tensor
    norm: Tensor

    def effective_sample_size(self) -> Tensor:
        """Kish's `(sum |f|)^2 / sum |f|^2` over the R K weighted residuals f: between 1 and R K."""
        return self.norm.sum() ** 2 / self.norm.square().sum()


@torch.no_grad()
def estimate(
    z: Tensor,
    residual: Residual,
    q: Proposal,
    w: Tensor,
    K: int,
    rng: torch.Generator,
    *,
    kind: StrataKind = "render",
    coupling: NoiseKind = "independent",
    chunk: int = 0,
) -> Estimate:
    """The averaged residual of each render, from K resamples that share its latents.

    Args:
        z: (R, *shape) latents; no gradient flows through them here.
        residual: the teacher's residual for a batch of draws.
        q: where timesteps are drawn from, with its ratio p/q.
        w: (T,) w_SDS(t), float64.
        K: resamples a render, at least 1.
        rng: every draw comes from it; on the device of z.
        kind: the strata of the uniforms.
        coupling: of the eps of one render; the paper's are independent.
        chunk: most draws in one call of `residual`; 0 for all R K. Changes nothing beyond rounding.

    Raises:
        ValueError: K < 1 or chunk < 0.
    """
    if K < 1 or chunk < 0:
        raise ValueError(f"resamples must be at least 1 and chunk at least 0, got K = {K}, chunk = {chunk}")
    R = len(z)
    t, eps = draws(R, K, z.shape[1:], q, rng, z.dtype, kind=kind, coupling=coupling)
    weight = (q.ratio[t] * w[t]).flatten()

    r = torch.arange(R, device=z.device).repeat_interleave(K)
    size = chunk or R * K
    t_n, eps_n = t.flatten(), eps.flatten(0, 1)
    parts = [slice(n, n + size) for n in range(0, R * K, size)]
    f = torch.cat([residual(z[r[n]], t_n[n], eps_n[n], r[n]) for n in parts])
    f = f * weight.to(f.dtype).view(-1, *[1] * (f.ndim - 1))

    f = f.unflatten(0, (R, K))
    return Estimate(f.mean(1), t, q.ratio[t], f.flatten(2).float().norm(dim=2))
