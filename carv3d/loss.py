"""The estimator as a loss, for any training loop.

carv = Carv(teacher, resamples=8)
loss, estimate = carv(latents, condition)
loss.backward()
"""

from __future__ import annotations

import copy
import logging

import torch
from torch import Tensor

from carv3d.estimator import Estimate, estimate
from carv3d.sampling import NoiseKind, ProposalKind, StrataKind, WeightingKind, proposal, sds_weight, uniform_pmf
from carv3d.teachers.base import Teacher

log = logging.getLogger(__name__)


class Carv:
    """Score distillation with K resamples a render.

    The loss is the surrogate `(z * fbar).sum() / R`: its value means nothing, its gradient is the estimate. In
    half precision the other usual form, `mse(z, (z - fbar).detach())`, loses small gradients to rounding.

    Attributes:
        w: (T,) float64 on the CPU, w_SDS(t).
        p: (T,) float64 on the CPU, the target pmf over timesteps: uniform on `t_range`.
        proposal: q, on the teacher's device.
    """

    def __init__(
        self,
        teacher: Teacher,
        *,
        resamples: int = 8,
        proposal: ProposalKind = "importance",
        strata: StrataKind = "render",
        noise: NoiseKind = "antithetic",
        weighting: WeightingKind = "sds",
        scale: float = 7.5,
        t_range: tuple[float, float] = (0.02, 0.98),
        chunk: int = 0,
        rng: torch.Generator | None = None,
    ):
        """Set up.

        Args:
            teacher: see `carv3d.teachers.Teacher`.
            resamples: K, at least 1. K = 1 with the uniform proposal is plain SDS.
            proposal: where timesteps come from, see `carv3d.sampling.proposal`.
            strata: see `carv3d.sampling.strata`.
            noise: see `carv3d.sampling.noise`; the paper's is "independent".
            weighting: w_SDS(t), see `carv3d.sampling.sds_weight`.
            scale: classifier-free guidance, `uncond + scale (cond - uncond)`.
            t_range: smallest and largest timestep, as fractions of the schedule; may be set again at any time.
            chunk: most draws in one teacher call; 0 for all. Halved, and kept so, where memory runs out.
            rng: used by calls that bring none; seeded with 0 if not given.

        Raises:
            ValueError: K < 1, or a range outside the schedule.
        """
        if resamples < 1:
            raise ValueError(f"resamples must be at least 1, got {resamples}")
        device = teacher.schedule.device
        self.teacher, self.resamples, self.scale, self.chunk = teacher, resamples, scale, chunk
        self.strata: StrataKind = strata
        self.noise: NoiseKind = noise
        self.rng = rng or torch.Generator(device).manual_seed(0)
        self._kind: ProposalKind = proposal
        self.w = sds_weight(teacher.schedule.alpha.cpu(), teacher.schedule.sigma.cpu(), weighting)
        self._w_device = self.w.to(device)
        self.t_range = t_range

    def replace(self, *, resamples: int, proposal: ProposalKind, strata: StrataKind, noise: NoiseKind) -> Carv:
        """The same objective, estimated in another way; the teacher, the range and the generator are shared."""
        other = copy.copy(self)
        other.resamples, other.strata, other.noise, other._kind = resamples, strata, noise, proposal
        other.t_range = self.t_range
        return other

    @property
    def t_range(self) -> tuple[float, float]:
        """Smallest and largest timestep, as fractions of the schedule."""
        return self._t_range

    @t_range.setter
    def t_range(self, fractions: tuple[float, float]) -> None:
        last = len(self.w) - 1
        if not 0 <= fractions[0] <= fractions[1] <= 1:
            raise ValueError(f"t_range must be two fractions of the schedule, in order, not {fractions}")
        low, high = (min(round(fraction * len(self.w)), last) for fraction in fractions)
        self.p = uniform_pmf(len(self.w), low, high)
        self._t_range = fractions
        self.proposal = proposal(self.p, self.w, self._kind).to(self._w_device.device)

    def __call__(
        self, latents: Tensor, condition: object, rng: torch.Generator | None = None
    ) -> tuple[Tensor, Estimate]:
        """The loss of R renders' latents (R, C, h, w) under the teacher's condition of R rows.

        Returns:
            A scalar to call `backward` on, and what was drawn.

        Raises:
            FloatingPointError: a residual is not finite; the message names the timesteps.
        """
        found = self.estimate(latents, condition, rng)
        check_finite(found)
        return (latents * found.fbar).sum() / len(latents), found

    def estimate(self, latents: Tensor, condition: object, rng: torch.Generator | None = None) -> Estimate:
        """The estimate alone, unchecked and without waiting for the device."""
        z = latents.detach()

        def residual(z: Tensor, t: Tensor, eps: Tensor, r: Tensor) -> Tensor:
            try:
                return self.teacher.residual(z, t, eps, condition[r], self.scale)  # type: ignore[index]
            except torch.OutOfMemoryError:
                if len(z) == 1:
                    raise
                self.chunk = (len(z) + 1) // 2
                log.info("out of memory with %d draws in one teacher call: from now on %d", len(z), self.chunk)
            torch.cuda.empty_cache()  # the draws are made already: in halves they are the same
            parts = zip(*(x.split(self.chunk) for x in (z, t, eps, r)), strict=True)
            return torch.cat([residual(*part) for part in parts])

        return estimate(
            z,
            residual,
            self.proposal,
            self._w_device,
            self.resamples,
            rng or self.rng,
            kind=self.strata,
            coupling=self.noise,
            chunk=self.chunk,
        )


def check_finite(found: Estimate) -> None:
    """Raise FloatingPointError, naming the timesteps, if a residual is not finite."""
    bad = ~torch.isfinite(found.norm)
    if bad.any():
        timesteps = sorted(set(found.t[bad].tolist()))
        raise FloatingPointError(f"the teacher's residual is not finite at timesteps {timesteps}")
