"""The estimator as a loss, for any training loop.

carv = Carv(model, resamples=8)
loss, estimate = carv(latents, condition)
loss.backward()
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any, cast, get_args

import torch
from torch import Tensor

from carv3d import registry
from carv3d.config.keys import Strata, Weighting
from carv3d.estimator import Estimate, estimate
from carv3d.generation.config import GuidanceConfig
from carv3d.guidance import Guidance, Unguided, guidance_of
from carv3d.objectives import Draw, Objective
from carv3d.sampling import (
    Draws,
    check_choice,
    draw,
    draw_at,
    key,
    proposal,
    uniform_pmf,
)
from carv3d.sampling import noise as coupled
from carv3d.teachers.base import ScoreModel

TimestepRange = tuple[float, float] | tuple[int, int]


class Carv:
    """The loss of score distillation, with K resamples a render.

    Draws are a function of (seed, step, render) unless a call brings its own or a generator: a resumed run repeats
    them, and processes that share a step draw different ones.

    Attributes:
        model, objective, guidance: the parts of the residual.
        step: of the next call without a step; each call increments it.
        w: (T,) float64 on the CPU, w(t).
        p: (T,) float64 on the CPU, the target pmf over timesteps: uniform on `t_range`.
        proposal: q, on the model's device.
    """

    def __init__(
        self,
        model: ScoreModel,
        *,
        objective: Objective | str = "sds",
        guidance: Guidance | float = GuidanceConfig.scale,
        resamples: int = cast(int, GuidanceConfig.resamples),
        proposal: str = GuidanceConfig.proposal,
        strata: Strata = GuidanceConfig.strata,
        coupling: str = GuidanceConfig.coupling,
        weighting: Weighting = GuidanceConfig.weighting,
        t_range: TimestepRange = (0.02, 0.98),
        chunk: int = GuidanceConfig.chunk,
        clip: float | None = None,
        seed: int = 0,
    ):
        """Set up, and check everything that can be checked before the first call.

        The defaults are those of the config, see `carv3d.generation.config.GuidanceConfig`.

        Args:
            model: see `carv3d.teachers.ScoreModel`; of a diffusers pipeline: `carv3d.from_pipeline(pipe)`.
            objective: "sds", "csd", "vsd", the name of a plug-in, or an object.
            guidance: the scale of classifier-free guidance, `uncond + scale (cond - uncond)`; or an object, see
                `carv3d.guidance`. A model without an unconditional prediction is not guided by a scale.
            resamples: K, at least 1. K = 1 with the uniform proposal is the plain objective.
            proposal: where timesteps come from, see `carv3d.sampling.proposal`.
            strata: see `carv3d.sampling.stratified_uniforms`.
            coupling: of the noises, see `carv3d.sampling.noise`; the paper's is "independent".
            weighting: w(t), see `carv3d.sampling.sds_weight`.
            t_range: smallest and largest timestep, both included: two fractions of the schedule (floats) or two
                timesteps (whole numbers); may be set again at any time.
            chunk: most draws in one call of the model; 0 for all. Halved, and kept so, where memory runs out.
            clip: limit of the absolute value of every number of fbar in the loss; makes it biased. None for no limit.
            seed: of draws, and of what the objective trains.

        Raises:
            ValueError: a value out of its range, an unknown choice, or a guidance that the model cannot serve.
            TypeError: no score model.
            UserError: an unknown objective, proposal or coupling, or an objective that the model cannot serve.
        """
        _check_model(model)
        _check_whole("resamples", resamples, 1)
        _check_whole("chunk", chunk, 0)
        _check_whole("seed", seed, 0)
        check_choice("strata", strata, get_args(Strata))
        # Called once here, so that a wrong coupling of a plug-in is refused before the first step.
        coupled(
            1, int(resamples), (max(64, int(resamples)),), torch.Generator().manual_seed(0), torch.float32, coupling
        )
        if clip is not None and (isinstance(clip, bool) or not 0 < clip < float("inf")):
            raise ValueError(f"clip must be a positive number or None, not {clip!r}")
        self.model, self.chunk, self.clip = model, chunk, clip
        self.seed, self.step = int(seed), 0
        self.guidance = _guidance(guidance, model)
        self.objective = _objective(objective)
        self.resamples, self.strata, self.coupling, self._kind = int(resamples), strata, coupling, proposal
        self.w = self.objective.weight(model.schedule, weighting)
        self._w_device = self.w.to(self.device)
        self.t_range = t_range
        self.objective.prepare(model, self.guidance, seed)

    @property
    def device(self) -> torch.device:
        """The model's."""
        return self.model.schedule.device

    def replace(self, *, resamples: int, proposal: str, strata: Strata, coupling: str) -> Carv:
        """The same objective, estimated in another way; the model, the objective and the range are shared."""
        other = copy.copy(self)
        other.resamples, other.strata, other.coupling, other._kind = resamples, strata, coupling, proposal
        other.t_range = self.t_range
        return other

    @property
    def t_range(self) -> TimestepRange:
        """Smallest and largest timestep, as fractions of the schedule or as timesteps."""
        return self._t_range

    @t_range.setter
    def t_range(self, ends: TimestepRange) -> None:
        low, high = timestep_range(ends, len(self.w))
        self.p = uniform_pmf(len(self.w), low, high)
        self._t_range = ends
        self.proposal = proposal(self.p, self.w, self._kind).to(self.device)

    def __call__(
        self,
        latents: Tensor,
        condition: Any,
        rng: torch.Generator | None = None,
        *,
        draws: Draws | None = None,
        step: int | None = None,
        first: int | None = None,
    ) -> tuple[Tensor, Estimate]:
        """The loss of R renders' latents (R, C, h, w) under a condition of R rows.

        Args:
            latents: with a graph; on the model's device.
            condition: of the model.
            rng, draws, step, first: see `draw`.

        Returns:
            A scalar with a graph, see `surrogate`, and the estimate.

        Raises:
            ValueError: latents without a graph, or shapes and devices that do not fit.
            FloatingPointError: a residual is not finite; the message names the timesteps.
        """
        if not latents.requires_grad:
            raise ValueError(
                "the latents have no graph, so that nothing would be trained: pass what the encoder returned for the "
                "render, not detached and not under torch.no_grad(); for the estimate alone call Carv.estimate"
            )
        found = self.estimate(latents, condition, rng, draws=draws, step=step, first=first)
        check_finite(found.norm, found.draws.t)
        return surrogate(latents, found.fbar, self.clip), found

    def draw(
        self,
        latents: Tensor,
        rng: torch.Generator | None = None,
        *,
        step: int | None = None,
        first: int | None = None,
        of: int | None = None,
    ) -> Draws:
        """The draws of R renders' latents.

        Args:
            latents: (R, C, h, w); their shape, type and device.
            rng: draws from it. Without it the draws are a function of (seed, step, render).
            step: of the run; by default the calls so far.
            first: index of the first of these renders in the step. By default 0, or R times the rank where
                torch.distributed is initialised, so that ranks with different renders draw different noises.
            of: renders in the whole step; by default R times the number of ranks. Used by strata="global".
        """
        R = len(latents)
        how: dict[str, Any] = {"strata": self.strata, "coupling": self.coupling}
        if rng is not None:
            return draw(R, self.resamples, latents.shape[1:], self.proposal, rng, latents.dtype, **how)
        if step is None:
            step, self.step = self.step, self.step + 1
        rank, ranks = _rank()
        first = R * rank if first is None else first
        of = max(R * ranks, first + R) if of is None else of
        renders = range(first, first + R)
        where = (self.resamples, latents.shape[1:], self.proposal, self.device, latents.dtype)
        return draw_at(self.seed, step, renders, *where, **how, of=of)

    def estimate(
        self,
        latents: Tensor,
        condition: Any,
        rng: torch.Generator | None = None,
        *,
        draws: Draws | None = None,
        step: int | None = None,
        first: int | None = None,
    ) -> Estimate:
        """The estimate, without a check for finite values and without waiting for the device.

        Args:
            latents: (R, C, h, w), with or without a graph.
            condition: of R rows.
            rng, step, first: see `draw`.
            draws: to use instead; from this object's proposal.

        Raises:
            ValueError: shapes and devices that do not fit.
        """
        self._check(latents, condition)
        z = latents.detach()
        draws = self.draw(z, rng, step=step, first=first) if draws is None else draws

        def residual(z: Tensor, t: Tensor, eps: Tensor, r: Tensor) -> Tensor:
            return self.objective.residual(Draw(self.model, self.guidance, z, t, eps, condition[r]))

        found = estimate(z, residual, self.proposal, self._w_device, draws, chunk=self.chunk)
        self.chunk = found.chunk
        return found

    def update(
        self, latents: Tensor, condition: Any, rng: torch.Generator | None = None, *, step: int | None = None
    ) -> dict[str, Tensor]:
        """Train the objective's own parameters, after the optimiser's step; SDS and CSD have none.

        Args:
            latents: (R, C, h, w) of the step.
            condition: of R rows.
            rng: of all random numbers; by default a function of (seed, step).
            step: the same as in the call before; by default that of the last call.

        Returns:
            scalars to log, by name.
        """
        if rng is None:
            step = self.step - 1 if step is None else step
            rng = torch.Generator(self.device).manual_seed(key(self.seed, step, -2, _rank()[0]))
        return self.objective.update(latents.detach(), condition, rng)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Restores the objective's parameters at the end, for steps that are only timed."""
        state = {name: tensor.clone() for name, tensor in self.objective.state_dict().items()}
        try:
            yield
        finally:
            self.objective.load_state_dict(state)

    def state_dict(self) -> dict[str, Tensor]:
        """All that the next call depends on, as tensors by name."""
        numbers = torch.tensor([self.seed, self.step, self.chunk])
        return {"numbers": numbers} | {f"objective.{k}": v for k, v in self.objective.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state_dict` gave.

        Raises:
            KeyError, RuntimeError, ValueError: the state is of another objective.
        """
        self.seed, self.step, self.chunk = state["numbers"].tolist()
        prefix = "objective."
        self.objective.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})

    def _check(self, latents: Tensor, condition: Any) -> None:
        if latents.ndim < 2 or not len(latents):
            raise ValueError(f"latents must be (R, C, h, w) with R >= 1, not {tuple(latents.shape)}")
        if latents.device != self.device and latents.device.type != "meta":
            raise ValueError(f"the latents are on {latents.device} and the model on {self.device}: move one of them")
        try:
            rows = len(condition)
        except TypeError:
            return
        if rows != len(latents):
            raise ValueError(
                f"the condition has {rows} rows and there are {len(latents)} renders: give it one row a render"
            )


def surrogate(z: Tensor, fbar: Tensor, clip: float | None = None) -> Tensor:
    """A scalar whose value is `1/2 |fbar|^2 / R` and whose gradient is `fbar / R`, the estimate of Algorithm 1.

    The value is that of the usual `1/2 mse(z, (z - fbar).detach())`, summed; but in half precision that form loses
    small gradients by rounding, and this form does not.

    Args:
        z: (R, ...) latents with a graph.
        fbar: (R, ...), see `Estimate`.
        clip: limit of the absolute value of every number of fbar; the gradient is biased then.
    """
    dtype = torch.promote_types(z.dtype, torch.float32)  # sums leave the range of half precision
    f = fbar.to(dtype) if clip is None else fbar.to(dtype).clamp(-clip, clip)
    linear = (z.to(dtype) * f).sum() / len(z)
    return linear - linear.detach() + f.square().sum() / (2 * len(z))


def check_finite(norm: Tensor, t: Tensor) -> None:
    """Refuse residuals that are not finite.

    Args:
        norm: (R, K) of the weighted residuals.
        t: (R, K) their timesteps.

    Raises:
        FloatingPointError: names the timesteps.
    """
    bad = ~torch.isfinite(norm)
    if bad.any():
        timesteps = sorted(set(t[bad].tolist()))
        raise FloatingPointError(f"the teacher's residual is not finite at timesteps {timesteps}")


def timestep_range(ends: TimestepRange, timesteps: int) -> tuple[int, int]:
    """Two timesteps, both included, from two fractions of a schedule of T timesteps or from two timesteps.

    A fraction x is the timestep `round(x T)`, at most the last.

    Raises:
        ValueError: not two numbers of one kind, out of order, or outside the schedule.
    """
    wanted = f"two fractions from 0.0 to 1.0, or two timesteps from 0 to {timesteps - 1}, in order, not {ends!r}"
    numbers: list[Any] = list(ends)
    if len(numbers) != 2 or not all(isinstance(end, Real) and not isinstance(end, bool) for end in numbers):
        raise ValueError(f"t_range must be {wanted}")
    whole = [isinstance(end, Integral) for end in numbers]
    allowed, low, high = False, 0, 0
    if all(whole):
        low, high = int(numbers[0]), int(numbers[1])
        allowed = 0 <= low <= high < timesteps
    elif not any(whole):
        allowed = 0 <= numbers[0] <= numbers[1] <= 1
        low, high = (min(round(float(end) * timesteps), timesteps - 1) for end in numbers) if allowed else (0, 0)
    if not allowed:
        raise ValueError(f"t_range must be {wanted}")
    return low, high


def _guidance(given: Any, model: ScoreModel) -> Guidance:
    if hasattr(given, "branches"):
        if missing := [branch for branch in given.branches if branch not in model.branches]:
            raise ValueError(f"{type(given).__name__} needs the branch {missing[0]!r}, which the model cannot predict")
        return cast(Guidance, given)
    if isinstance(given, bool) or not isinstance(given, Real):
        raise TypeError(f"guidance must be a number, or an object as in carv3d.guidance, not {given!r}")
    guidance = guidance_of(float(given))
    return guidance if "uncond" in model.branches else Unguided()


def _objective(given: Objective | str) -> Objective:
    made = registry.find("objective", given)() if isinstance(given, str) else given
    if not isinstance(made, Objective):
        raise TypeError(
            f"objective must be a name, or an object of a subclass of carv3d.objectives.Objective: {given!r}"
        )
    return made


def _check_model(model: Any) -> None:
    missing = [name for name in ("schedule", "branches", "predict") if not hasattr(model, name)]
    if missing:
        pipeline = hasattr(model, "scheduler") and hasattr(model, "components")
        hint = "wrap a diffusers pipeline with carv3d.from_pipeline(pipe)" if pipeline else "see carv3d.teachers"
        raise TypeError(f"a {type(model).__name__} is no score model, it has no {', '.join(missing)}: {hint}")


def _check_whole(name: str, value: Any, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < low:
        raise ValueError(f"{name} must be a whole number of at least {low}, not {value!r}")


def _rank() -> tuple[int, int]:
    """This process's rank and the number of ranks; (0, 1) without torch.distributed."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
