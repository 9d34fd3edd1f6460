"""The draws of the K resamples: proposals of timesteps, strata, weights, couplings of the noises.

Symbols (paper, section 3): `p` the target pmf over timesteps, `q` the proposal, `w` the SDS weight, `u` the
stratified uniforms, `t` a timestep, `R` renders, `K` resamples. Everything is a pure function of a
`torch.Generator`; pmfs and CDFs are float64, since float32 CDFs often end below 1.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from carv3d import registry
from carv3d.config.keys import Strata, Weighting
from carv3d.errors import UserError
from carv3d.system.transfer import sent

Normals = Callable[[int], Tensor]  # n -> independent normal numbers (R, n, *shape)
Coupling = Callable[[Normals, int], Tensor]  # normals, K -> eps (R, K, *shape), each marginally N(0, I)


def check_choice(what: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuse a value that is not among the choices.

    Raises:
        ValueError: names the choices, and the one that was probably meant.
    """
    if value not in choices:
        near = difflib.get_close_matches(str(value), choices, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown {what} {value!r}; {hint}use one of {', '.join(choices)}")


def sds_weight(alpha: Tensor, sigma: Tensor, kind: Weighting) -> Tensor:
    """w_SDS(t) of the weightings in use, (T,) float64, for noise schedules alpha_t, sigma_t (T,).

    "sds" is `sigma_t^2` (DreamFusion, as in threestudio), "uniform" is 1, "fantasia3d" is
    `alpha_t sigma_t^2` (Fantasia3D, arXiv 2303.13873). "velocity" is `1 / alpha_t`: for flow matching, whose noise
    residual is alpha_t times that of the velocity `eps - z`, it gives the velocity's residual weight 1 (Yang et al.,
    "Text-to-Image Rectified Flow as Plug-and-Play Priors", arXiv 2406.03293); 0 where alpha_t is 0.
    """
    check_choice("weighting", kind, get_args(Weighting))
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
        return Proposal(sent(self.q, device), sent(self.ratio, device), sent(self.cdf, device), self.last)


def proposal(p: Tensor, w: Tensor, kind: str) -> Proposal:
    """The proposal of a name, for a target pmf p and weights w, both (T,).

    Raises:
        UserError: an unknown name; no pmf; or a pmf that is zero at a timestep where `p w` is not.
    """
    p, w = p.double(), w.double()
    q = registry.find("proposal", kind)(p, w)
    if not isinstance(q, Tensor) or q.shape != p.shape:
        raise UserError(f"the proposal {kind!r} must give a tensor of {len(p)} numbers, one a timestep")
    try:
        found = Proposal.of(p, q)
    except ValueError as error:
        raise UserError(f"the proposal {kind!r} cannot be used: {error}") from None
    if bool(((p * w > 0) & (found.q == 0)).any()):
        raise UserError(f"the proposal {kind!r} is zero at timesteps where p w is not: the gradient would be biased")
    return found


def uniform(p: Tensor, w: Tensor) -> Tensor:
    """The proposal q = p."""
    return p


def importance(p: Tensor, w: Tensor) -> Tensor:
    """The proposal q proportional to p w (paper, section 3.2)."""
    return p * w


def stratified_uniforms(renders: int, resamples: int, strata: Strata, rng: torch.Generator) -> Tensor:
    """Uniforms u (R, K) float64 in [0, 1), each marginally U[0, 1), on the generator's device.

    "none": independent. "render": `u_b = (b - 1 + xi_b) / K` within each render (Algorithm 1, line 3).
    "global": one draw in each of the R K strata of the batch, and one in each of the K strata of every
    render; the assignment of fine strata to renders is random, so that every render alone is unbiased.

    Raises:
        ValueError: unknown strata.
    """
    check_choice("strata", strata, get_args(Strata))
    device = rng.device
    xi = torch.rand(renders, resamples, generator=rng, device=device, dtype=torch.float64)
    b = torch.arange(resamples, device=device, dtype=torch.float64)
    match strata:
        case "none":
            return xi
        case "render":
            return (b + xi) / resamples
        case "global":
            keys = torch.rand(renders, resamples, generator=rng, device=device)
            return (b * renders + keys.argsort(0) + xi) / (renders * resamples)


def noise(
    renders: int,
    resamples: int,
    shape: torch.Size | tuple[int, ...],
    rng: torch.Generator,
    dtype: torch.dtype,
    coupling: str = "independent",
) -> Tensor:
    """eps (R, K, *shape), each marginally N(0, I) and independent of all t, on the generator's device.

    The residual is mostly odd in eps, so that its noise cancels between opposite draws; the mean does not change.

    Args:
        renders, resamples, shape: R, K and the latents' shape.
        rng: every draw comes from it.
        dtype: of eps.
        coupling: how the K noises of a render depend on each other, by name.

    Raises:
        UserError: an unknown coupling, or one that returns another shape.
    """

    def normals(count: int) -> Tensor:
        return torch.randn((renders, count, *shape), generator=rng, device=rng.device, dtype=dtype)

    coupled: Tensor = registry.find("coupling", coupling)(normals, resamples)
    if not isinstance(coupled, Tensor) or coupled.shape != (renders, resamples, *shape):
        raise UserError(f"the noise {coupling!r} must give a tensor (R, K, *latent shape), see docs/how-to/plugins.md")
    return coupled


def independent(normals: Normals, resamples: int) -> Tensor:
    """The K noises are independent, as in the paper."""
    return normals(resamples)


def antithetic(normals: Normals, resamples: int) -> Tensor:
    """eps and -eps on neighbouring strata; of an odd K the last is alone."""
    eps = normals((resamples + 1) // 2)
    return torch.stack([eps, -eps], 2).flatten(1, 2)[:, :resamples]


def zero_sum(normals: Normals, resamples: int) -> Tensor:
    """`sqrt(K / (K - 1)) (g_k - mean g)` of independent g, so that the K noises of a render sum to zero."""
    g = normals(resamples)
    return g if resamples == 1 else (g - g.mean(1, keepdim=True)) * (resamples / (resamples - 1)) ** 0.5


@dataclass(frozen=True)
class Draws:
    """K resamples of each of R renders.

    Attributes:
        t: (R, K) long, timesteps.
        eps: (R, K, *latent shape), noises.
    """

    t: Tensor
    eps: Tensor

    def __getitem__(self, renders: slice | Tensor) -> Draws:
        return Draws(self.t[renders], self.eps[renders])

    def resamples(self, part: slice) -> Draws:
        """Some of the K resamples of every render: for processes that share the renders and split the draws."""
        return Draws(self.t[:, part], self.eps[:, part])


def draw(
    renders: int,
    resamples: int,
    shape: torch.Size | tuple[int, ...],
    q: Proposal,
    rng: torch.Generator,
    dtype: torch.dtype = torch.float32,
    *,
    strata: Strata = "render",
    coupling: str = "independent",
) -> Draws:
    """Draws of R renders: t by the inverse CDF of stratified uniforms, then eps.

    Everything that estimates an expectation over (t, eps) draws here, or by `draw_at`.

    Args:
        renders, resamples, shape: R, K and the latents' shape.
        q: where timesteps are drawn from; on the generator's device.
        rng: every draw comes from it.
        dtype: of eps.
        strata: see `stratified_uniforms`.
        coupling: see `noise`.
    """
    t = q.icdf(stratified_uniforms(renders, resamples, strata, rng))
    return Draws(t, noise(renders, resamples, shape, rng, dtype, coupling))


def draw_at(
    seed: int,
    step: int,
    renders: range,
    resamples: int,
    shape: torch.Size | tuple[int, ...],
    q: Proposal,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    *,
    strata: Strata = "render",
    coupling: str = "independent",
    of: int = 0,
) -> Draws:
    """Draws of some renders of a step, as a function of (seed, step, render): they need no state.

    Processes that share a step get what one process would have drawn: each asks for its own renders, or all ask for
    the same ones and take parts of the K resamples. A resumed run repeats its draws.

    Args:
        seed: of the run.
        step: counted from 0.
        renders: which of the step's renders.
        resamples, shape, q, dtype, strata, coupling: see `draw`.
        device: of the draws; the numbers depend on its type.
        of: how many renders the whole step has; matters for strata="global" only, whose strata run over them.

    Raises:
        ValueError: strata="global" and fewer than the renders asked for.
    """
    rng = torch.Generator(device)
    shared = None
    if strata == "global":
        if of < renders.stop:
            raise ValueError(f"strata='global' needs the number of renders of the step, at least {renders.stop}")
        shared = stratified_uniforms(of, resamples, strata, rng.manual_seed(key(seed, step, -1)))
    rows = []
    for render in renders:
        rng.manual_seed(key(seed, step, render))
        if shared is None:
            rows.append(draw(1, resamples, shape, q, rng, dtype, strata=strata, coupling=coupling))
        else:
            t = q.icdf(shared[render : render + 1])
            rows.append(Draws(t, noise(1, resamples, shape, rng, dtype, coupling)))
    return Draws(torch.cat([row.t for row in rows]), torch.cat([row.eps for row in rows]))


def key(*numbers: int) -> int:
    """A generator's seed, in [0, 2^63), that differs for different tuples of whole numbers."""
    digest = hashlib.sha256(" ".join(map(str, numbers)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
