"""Where the K resamples of a render come from: timestep proposals, strata, weights, coupled noise.

Symbols (paper, section 3): `p` the target pmf over timesteps, `q` the proposal, `w` the SDS weight, `u` the
stratified uniforms, `t` a timestep, `R` renders, `K` resamples. Everything is a pure function of a
`torch.Generator`; pmfs and CDFs are float64, since float32 CDFs often end below 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

ProposalKind = Literal["uniform", "importance"]
StrataKind = Literal["none", "render", "global"]
NoiseKind = Literal["independent", "antithetic", "zero_sum"]
Draw = Callable[[int], Tensor]  # n -> independent normal numbers (R, n, *shape)
Coupling = Callable[[Draw, int], Tensor]  # draw, K -> eps (R, K, *shape)
WeightingKind = Literal["sds", "uniform", "fantasia3d", "velocity"]


def sds_weight(alpha: Tensor, sigma: Tensor, kind: WeightingKind) -> Tensor:
    """w_SDS(t) of the weightings in use, (T,) float64, for noise schedules alpha_t, sigma_t (T,).

    "sds" is `sigma_t^2` (DreamFusion, as threestudio has it), "uniform" is 1, "fantasia3d" is
    `alpha_t sigma_t^2` (Fantasia3D, arXiv 2303.13873). "velocity" is `1 / alpha_t`: for flow matching, whose noise
    residual is alpha_t times that of the velocity `eps - z`, it gives the velocity's residual weight 1 (Yang et al.,
    "Text-to-Image Rectified Flow as Plug-and-Play Priors", arXiv 2406.03293); 0 where alpha_t is 0.
    """
    a, s = alpha.double(), sigma.double()
    match kind:
        case "sds":
            return s**2
        case "uniform":
            return torch.ones_like(a)
        case "fantasia3d":
            return a * s**2
        case "velocity":
            return torch.where(a > 0, 1 / a, 0.0)
    raise ValueError(f"unknown weighting {kind!r}: use 'sds', 'uniform', 'fantasia3d' or 'velocity'")


def uniform_pmf(timesteps: int, t_min: int, t_max: int) -> Tensor:
    """p(t): equal on the timesteps t_min to t_max, both included; zero elsewhere. (T,) float64.

    Raises:
        ValueError: unless 0 <= t_min <= t_max < timesteps.
    """
    if not 0 <= t_min <= t_max < timesteps:
        raise ValueError(
            f"the timestep range [{t_min}, {t_max}] must lie within the schedule's 0 to {timesteps - 1}, in order"
        )
    p = torch.zeros(timesteps, dtype=torch.float64)
    p[t_min : t_max + 1] = 1 / (t_max + 1 - t_min)
    return p


@dataclass(frozen=True)
class Proposal:
    """A pmf `q` to draw timesteps from, and the plain importance ratio `p / q` that corrects for it.

    Attributes:
        q: (T,) float64, sums to 1.
        ratio: (T,) float64, p / q; zero where q is zero.
        cdf: (T,) float64, cumulative sum of q.
        last: the last timestep with q > 0.
    """

    q: Tensor
    ratio: Tensor
    cdf: Tensor
    last: int

    @classmethod
    def of(cls, p: Tensor, q: Tensor) -> Proposal:
        """From a target pmf p and an unnormalised proposal q >= 0, both (T,).

        Unbiased for every f with `f(t) p(t) = 0` wherever `q(t) = 0`.

        Raises:
            ValueError: q is negative, not finite, or zero everywhere.
        """
        p, q = p.double(), q.double()
        if not bool(torch.isfinite(q).all() and (q >= 0).all() and q.sum() > 0):
            raise ValueError("a proposal must be finite, non-negative and positive somewhere")
        q = q / q.sum()
        ratio = torch.where(q > 0, p / q, 0.0)
        return cls(q, ratio, q.cumsum(0), int(q.nonzero()[-1]))

    def icdf(self, u: Tensor) -> Tensor:
        """CDF_q^{-1}(u): timesteps (long, shape of u) for uniforms u in [0, 1).

        A bin of zero width is never returned, rounding at the end of the CDF included.
        """
        return torch.searchsorted(self.cdf, u.contiguous(), right=True).clamp_max(self.last)

    def to(self, device: torch.device | str) -> Proposal:
        """The same proposal on another device."""
        return Proposal(self.q.to(device), self.ratio.to(device), self.cdf.to(device), self.last)


def proposal(p: Tensor, w: Tensor, kind: ProposalKind) -> Proposal:
    """The paper's proposals: "uniform" is q = p, "importance" is q proportional to p w (section 3.2)."""
    match kind:
        case "uniform":
            return Proposal.of(p, p)
        case "importance":
            return Proposal.of(p, p.double() * w.double())
    raise ValueError(f"unknown proposal {kind!r}: use 'uniform' or 'importance'")


def strata(renders: int, resamples: int, kind: StrataKind, rng: torch.Generator) -> Tensor:
    """Uniforms u (R, K) float64 in [0, 1), each marginally U[0, 1), on the generator's device.

    "none": independent. "render": `u_b = (b - 1 + xi_b) / K` within each render (Algorithm 1, line 3).
    "global": one draw in each of the R K strata of the batch, and one in each of the K strata of every
    render; which render gets which fine stratum is random, so that every render alone stays unbiased.
    """
    device = rng.device
    xi = torch.rand(renders, resamples, generator=rng, device=device, dtype=torch.float64)
    b = torch.arange(resamples, device=device, dtype=torch.float64)
    match kind:
        case "none":
            return xi
        case "render":
            return (b + xi) / resamples
        case "global":
            keys = torch.rand(renders, resamples, generator=rng, device=device)
            return (b * renders + keys.argsort(0) + xi) / (renders * resamples)
    raise ValueError(f"unknown strata {kind!r}: use 'none', 'render' or 'global'")


def noise(
    renders: int,
    resamples: int,
    shape: torch.Size | tuple[int, ...],
    rng: torch.Generator,
    dtype: torch.dtype,
    kind: NoiseKind = "independent",
) -> Tensor:
    """eps (R, K, *shape), each marginally N(0, I) and independent of all t, on the generator's device.

    The residual's noise is mostly odd in eps, so that opposite draws cancel it; the mean does not change.

    Args:
        renders, resamples, shape: R, K and the latents' shape.
        rng: every draw comes from it.
        dtype: of eps.
        kind: of `COUPLINGS`, how the K of a render hang together.
    """
    if kind not in COUPLINGS:
        raise ValueError(f"unknown noise {kind!r}: use {', '.join(map(repr, COUPLINGS))}")

    def draw(count: int) -> Tensor:
        return torch.randn((renders, count, *shape), generator=rng, device=rng.device, dtype=dtype)

    return COUPLINGS[kind](draw, resamples)


def independent(draw: Draw, resamples: int) -> Tensor:
    """Of each other, as in the paper."""
    return draw(resamples)


def antithetic(draw: Draw, resamples: int) -> Tensor:
    """eps and -eps on neighbouring strata; of an odd K the last is alone."""
    eps = draw((resamples + 1) // 2)
    return torch.stack([eps, -eps], 2).flatten(1, 2)[:, :resamples]


def zero_sum(draw: Draw, resamples: int) -> Tensor:
    """`sqrt(K / (K - 1)) (g_k - mean g)` of independent g, so that the K of a render sum to zero."""
    g = draw(resamples)
    return g if resamples == 1 else (g - g.mean(1, keepdim=True)) * (resamples / (resamples - 1)) ** 0.5


COUPLINGS: dict[str, Coupling] = {"independent": independent, "antithetic": antithetic, "zero_sum": zero_sum}
"""By name. One of your own may be added: each eps (R, K, *shape) must stay marginally N(0, I)."""


def draws(
    renders: int,
    resamples: int,
    shape: torch.Size | tuple[int, ...],
    q: Proposal,
    rng: torch.Generator,
    dtype: torch.dtype,
    *,
    kind: StrataKind,
    coupling: NoiseKind,
) -> tuple[Tensor, Tensor]:
    """One batch of draws: t (R, K) long by the inverse CDF of stratified uniforms, then eps (R, K, *shape).

    Everything that estimates an expectation over (t, eps) draws here: see `strata` for `kind`, `noise` for `coupling`.
    """
    t = q.icdf(strata(renders, resamples, kind, rng))
    return t, noise(renders, resamples, shape, rng, dtype, coupling)
