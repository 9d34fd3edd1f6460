"""Estimates of the same gradient by several methods, on the same renders.

For every render, each method makes independent replicates of its whole estimate; nothing else differs between
methods. A pipeline is a function that renders, a `Carv` and a list of parameters: nothing here depends on scenes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from carv3d.accounting.unbiasedness import CountSketch, detectable_bias, disagreement, z_scores
from carv3d.accounting.variance import Floats, Interval, Spread, within
from carv3d.config.keys import Strata
from carv3d.errors import UserError
from carv3d.loss import Carv
from carv3d.sampling import Draws, draw

REPLICATES = 2  # of each stratified estimate at each render; two is the minimum that shows its noise
FEWEST_RENDERS = 4
SKETCH = 4096  # entries of the sketch of a gradient, for the comparison of means
STEADY = 16  # fewest renders before the precision may end the measurement
TIME_BINS = 12

# rng -> one render's latents z (1, *shape), with a graph to the parameters, and the teacher's condition for it.
Upstream = Callable[[torch.Generator], tuple[Tensor, Any]]


@dataclass(frozen=True)
class Method:
    """A way to estimate the same gradient."""

    proposal: str
    strata: Strata
    resamples: int
    coupling: str = "independent"

    @property
    def name(self) -> str:
        """Such as "importance + stratified"."""
        parts = ["importance"] * (self.proposal == "importance") + ["stratified"] * (self.strata != "none")
        parts += [self.coupling.replace("_", "-")] * (self.coupling != "independent")
        return " + ".join(parts) or "uniform"

    @property
    def drawn(self) -> Method:
        """The method that is drawn to measure this one: the method itself, or, for K independent draws, one draw."""
        return self if (self.strata, self.coupling) != ("none", "independent") else Method(self.proposal, "none", 1)


BASELINE = Method("uniform", "none", 1)


def methods(resamples: Sequence[int]) -> list[Method]:
    """For every K: {uniform, importance} x {independent, stratified}, and coupled noise on top of both.

    With one draw there are no strata and no coupling.
    """
    kinds: list[tuple[str, Strata, str]] = [
        ("uniform", "none", "independent"),
        ("importance", "none", "independent"),
        ("uniform", "render", "independent"),
        ("importance", "render", "independent"),
        ("importance", "render", "zero_sum"),
        ("importance", "render", "antithetic"),
    ]
    alone = kinds[:2]
    return [Method(p, s, K, n) for K in sorted({1, *resamples}) for p, s, n in (kinds if K > 1 else alone)]


@dataclass
class Measurement:
    """The measured samples; every render adds some.

    All methods have the same mean at every render, so the between-render part is one number, and the mean over all
    their replicates measures it best.

    Attributes:
        methods: the measured methods.
        within: by method with draws of its own, a sample of E tr Cov(g | c) a render. K independent draws have
            exactly 1 / K of one draw's, and no draws of their own.
        noise: by proposal, a sample of E tr Cov(g | c, t) at K = 1 a render.
        pooled: of the renders' means over all methods.
        pooled_noise: a sample of the variance that is left in that mean, a render.
        disagreements: a (methods with draws,) tensor a render, see `carv3d.accounting.disagreement`.
        power: a render, the product of two independent estimates of its mean gradient.
        timesteps: (draws,) and
        norms: (draws,) |J^T w(t) r|^2 of draws from p, for the norm by timestep.
        seconds: by render.
    """

    methods: Sequence[Method]
    within: dict[Method, list[Tensor]] = field(default_factory=dict)
    noise: dict[str, list[Tensor]] = field(default_factory=dict)
    pooled: Spread = field(default_factory=Spread)
    pooled_noise: list[Tensor] = field(default_factory=list)
    disagreements: list[Tensor] = field(default_factory=list)
    power: list[Tensor] = field(default_factory=list)
    timesteps: list[Tensor] = field(default_factory=list)
    norms: list[Tensor] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def trim(self) -> None:
        """Remove a render that was not measured completely."""
        count = len(self.seconds)
        for samples in (*self.within.values(), *self.noise.values(), self.pooled_noise, self.disagreements, self.power):
            del samples[count:]
        del self.timesteps[count:], self.norms[count:], self.pooled.increments[max(count - 1, 0) :]

    def between_samples(self) -> Floats:
        """A sample of tr Cov_c E[g | c] a render, the first left out; (n - 1,)."""
        spread = torch.stack(self.pooled.increments) - torch.stack(self.pooled_noise[1:])
        return spread.cpu().numpy()

    def within_samples(self, method: Method) -> Floats:
        """A sample of E_c tr Cov(g | c) a render, the first left out; (n - 1,)."""
        return torch.stack(self.within[method.drawn][1:]).cpu().numpy() / (method.resamples / method.drawn.resamples)

    def noise_samples(self, method: Method) -> Floats:
        """A sample of the part of eps in it a render, the first left out; (n - 1,). Timesteps add the rest.

        K independent eps have 1 / K of the part of one. A coupling does not change the part of the timesteps.
        """
        independent = torch.stack(self.noise[method.proposal][1:]).cpu().numpy() / method.resamples
        if method.coupling == "independent":
            return independent
        of_timesteps = self.within_samples(replace(method, coupling="independent")) - independent
        return self.within_samples(method) - of_timesteps

    def total(self, method: Method) -> Interval:
        """tr Cov of the gradient of one render."""
        return Interval.of_mean(self.between_samples() + self.within_samples(method))

    @property
    def worst_precision(self) -> float:
        """The largest relative half-width among the methods' total variances; infinite before the third render."""
        if len(self.seconds) < 3:
            return math.inf
        return max(self.total(method).precision for method in self.methods)

    def z(self) -> dict[Method, float]:
        """By method: the distance of its mean from that of the other methods at the same renders; see
        `carv3d.accounting.z_scores`.
        """
        own = dict(zip(self.within, z_scores(torch.stack(self.disagreements, 1)).tolist(), strict=True))
        return {method: own[method.drawn] for method in self.methods}

    def detectable_bias(self) -> float:
        """The smallest bias that would have been detected in any method, as a share of a render's mean gradient."""
        return float(detectable_bias(torch.stack(self.disagreements, 1).cpu(), torch.stack(self.power).cpu()).max())

    def norm_by_timestep(self, p: Tensor) -> tuple[Floats, Floats, Floats]:
        """Edges (B + 1,) of bins of timesteps, mean |J^T w(t) r|^2 (B,) in each, and its standard error (B,)."""
        support = p.nonzero()[:, 0]
        edges = np.linspace(int(support[0]), int(support[-1]) + 1, TIME_BINS + 1)
        t, norms = (torch.cat(x).cpu().double().numpy() for x in (self.timesteps, self.norms))
        # The two draws of a pair share their timestep: one sample.
        t, norms = t[::2], norms.reshape(-1, 2).mean(1)
        which = np.clip(np.digitize(t, edges) - 1, 0, TIME_BINS - 1)
        rows = [norms[which == b] for b in range(TIME_BINS)]
        mean = np.array([row.mean() if len(row) else np.nan for row in rows])
        error = np.array([row.std(ddof=1) / len(row) ** 0.5 if len(row) > 1 else np.nan for row in rows])
        return edges, mean, error


def second_moments(edges: Floats, mean: Floats, p: Tensor, w: Tensor) -> dict[str, float]:
    """E |(p/q) f|^2 of one draw under three proposals, from the binned E[|f|^2 | t] = m(t).

    Uniform q = p gives `sum p m`, importance q ∝ p w gives `sum p^2 m / q`, and no q gives less than the oracle's
    `(sum p sqrt m)^2`, q* ∝ p sqrt(m) (paper, the ideal proposal).
    """
    t = p.nonzero()[:, 0]
    centres = (edges[1:] + edges[:-1]) / 2
    known = np.isfinite(mean)
    # Within a bin, m is taken to be proportional to w^2.
    shape = w.double().numpy() ** 2
    bins = np.clip(np.digitize(t.numpy(), edges) - 1, 0, len(mean) - 1)
    of_bins = np.array([shape[t.numpy()[bins == b]].mean() if (bins == b).any() else np.nan for b in range(len(mean))])
    known &= np.isfinite(of_bins)
    level = np.interp(t.numpy(), centres[known], (mean / of_bins)[known])
    m, pt, wt = level * shape[t.numpy()], p[t].double().numpy(), w[t].double().numpy()
    q = pt * wt / (pt * wt).sum()
    return {
        "uniform": float((pt * m).sum()),
        "importance": float((pt**2 * m / q).sum()),
        "oracle": float((pt * np.sqrt(m)).sum() ** 2),
    }


def measure(
    carv: Carv,
    upstream: Upstream,
    parameters: Sequence[Tensor],
    tried: Sequence[Method],
    rng: torch.Generator,
    *,
    budget: float,
    precision: float = 0.0,
    most_renders: int = 10_000,
    already: float = 0.0,
    watch: Callable[[Measurement], None] = lambda _: None,
) -> Measurement:
    """Measure one render after another, until the budget is used up or every total variance is precise enough.

    Args:
        carv: the objective; its own K, proposal and strata do not matter.
        upstream: one render, drawn with the generator that it is given.
        parameters: what gradients are taken for.
        tried: the methods.
        rng: all draws; on the parameters' device.
        budget: seconds.
        precision: stop when the 95 % interval of every total variance is within this share of it; 0: never.
        most_renders: stop there too.
        already: seconds that the caller has spent, for the message about a budget that is too small.
        watch: called after every render.

    Raises:
        UserError: the budget is too small, the parameters get no gradient, the variance is zero, a gradient is not
            finite.
        ValueError: a method with global strata.
        KeyboardInterrupt: before there is enough to report. A later one ends the measurement like the end of the
            budget.
    """
    started = time.perf_counter()
    found = Measurement(list(tried))
    # Their parts are computed from those of one draw, and of independent noise.
    needed = [(Method(m.proposal, "none", 1), replace(m, coupling="independent").drawn, m.drawn) for m in tried]
    drawn = list(dict.fromkeys(method for three in needed for method in three))
    carvs = {
        m: carv.replace(resamples=m.resamples, proposal=m.proposal, strata=m.strata, coupling=m.coupling) for m in drawn
    }
    if any(method.strata == "global" for method in tried):
        raise ValueError("global strata tie the renders of a step together: replicates of one render cannot show them")
    length = sum(parameter.numel() for parameter in parameters)
    sketch = CountSketch(length, SKETCH, torch.Generator(rng.device).manual_seed(0))
    while len(found.seconds) < most_renders:
        began = time.perf_counter()
        try:
            _look(found, _View(*upstream(rng), parameters), carvs, sketch, rng)
        except KeyboardInterrupt:  # the measured renders can be reported
            if len(found.seconds) < FEWEST_RENDERS:
                raise
            found.trim()
            break
        if not bool(torch.isfinite(found.power[-1])):
            raise UserError(
                "a gradient is not finite: the scene has diverged, or the teacher needs teacher.dtype=float32"
            )
        found.seconds.append(time.perf_counter() - began)
        spent, count = time.perf_counter() - started, len(found.seconds)
        if count == 1 and FEWEST_RENDERS * found.seconds[0] > budget:
            raise UserError(
                f"the budget is too small: {max(budget, 0):.1f} s are left for the variance, but one render under "
                f"{len(tried)} methods takes {found.seconds[0]:.1f} s and {FEWEST_RENDERS} of them are needed; give at "
                f"least {math.ceil(2 * FEWEST_RENDERS * found.seconds[0] + 2 * already)} s, or fewer resamples"
            )
        watch(found)
        if count >= FEWEST_RENDERS and spent + float(np.median(found.seconds)) > budget:
            break
        if count >= STEADY and found.worst_precision < precision:
            break
    if all(found.total(method).value == 0 for method in tried):
        raise UserError("the variance is zero: the gradient does not depend on the camera, the timestep or the noise")
    return found


class Gradient:
    """The flat gradient of the parameters, from a residual of one render's latents. It can be called repeatedly."""

    def __init__(self, z: Tensor, parameters: Sequence[Tensor]) -> None:
        self.z, self.parameters = z, list(parameters)
        if not z.requires_grad:
            raise UserError("the scene has no gradient: nothing that the render depends on is trained")

    def __call__(self, fbar: Tensor) -> Tensor:
        """(P,)"""
        gradients = torch.autograd.grad(self.z, self.parameters, fbar, retain_graph=True, allow_unused=True)
        if all(g is None for g in gradients):
            raise UserError(
                "the latents do not depend on any of the parameters: their graph starts elsewhere, or was detached"
            )
        parts = [
            p.new_zeros(p.numel()) if g is None else g.flatten()
            for p, g in zip(self.parameters, gradients, strict=True)
        ]
        return torch.cat(parts)


class _View:
    """One render, whose gradient can be estimated repeatedly."""

    def __init__(self, z: Tensor, condition: Any, parameters: Sequence[Tensor]) -> None:
        self._latents, self._condition, self._gradient = z.detach(), condition, Gradient(z, parameters)

    def estimates(self, carv: Carv, rng: torch.Generator) -> Tensor:
        """Whole estimates of K resamples: their gradients (REPLICATES, P)."""
        rows = torch.zeros(REPLICATES, dtype=torch.long, device=self._latents.device)
        fbar = carv.estimate(self._latents[rows], self._condition[rows], rng).fbar
        return torch.stack([self._gradient(one[None]) for one in fbar])

    def singles(self, carv: Carv, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Estimates of one draw, two noises at both of two timesteps: timesteps (4,), and gradients (4, P)."""
        rows = torch.zeros(4, dtype=torch.long, device=self._latents.device)
        z = self._latents[rows]
        four = draw(4, 1, z.shape[1:], carv.proposal, rng, z.dtype, strata="none")
        pairs = Draws(four.t[::2].repeat_interleave(2, 0), four.eps)
        fbar = carv.estimate(z, self._condition[rows], draws=pairs).fbar
        return pairs.t[:, 0], torch.stack([self._gradient(one[None]) for one in fbar])


def _look(
    found: Measurement, view: _View, carvs: dict[Method, Carv], sketch: CountSketch, rng: torch.Generator
) -> None:
    """Draw every method at one more render, and add its samples to a `Measurement`."""
    total = sum(method.resamples for method in carvs)
    shares = torch.tensor([method.resamples / total for method in carvs], device=rng.device)  # of the pooled mean
    halves, pooled, left = [], None, torch.zeros((), dtype=torch.float64, device=rng.device)
    for (method, carv), share in zip(carvs.items(), shares, strict=True):
        if method.resamples == 1:
            t, replicates = view.singles(carv, rng)
            own, of_eps = _of_pairs(replicates), (within(replicates[:2]) + within(replicates[2:])) / 2
            found.noise.setdefault(method.proposal, []).append(of_eps)
            if method.proposal == "uniform":  # drawn from p itself
                found.timesteps.append(t)
                found.norms.append(replicates.square().sum(1))
            noise = 2 * own - of_eps  # pairs share a timestep, so that their mean has more variance
        else:
            replicates = view.estimates(carv, rng)
            own = noise = within(replicates)
        found.within.setdefault(method, []).append(own)
        mean = replicates.mean(0)
        pooled = share * mean if pooled is None else pooled + share * mean
        left += share**2 * noise / len(replicates)
        halves.append(torch.stack([sketch(half.mean(0)) for half in replicates.chunk(2)]))
    assert pooled is not None
    both = torch.stack(halves)
    found.pooled.add(pooled)
    found.pooled_noise.append(left)
    found.disagreements.append(disagreement(both, shares))
    first, second = (shares[:, None, None] * both).sum(0).double()
    found.power.append(first @ second)


def _of_pairs(replicates: Tensor) -> Tensor:
    """The variance of one draw from (4, P) whose rows 0, 1 and 2, 3 share a timestep: from the rows that do not."""
    distances = [(replicates[i] - replicates[j]).square().sum(dtype=torch.float64) for i in (0, 1) for j in (2, 3)]
    return torch.stack(distances).mean() / 2
