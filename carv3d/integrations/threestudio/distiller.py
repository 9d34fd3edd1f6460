"""A `Carv` with threestudio's interface: steps, ranges in timesteps, a dictionary of losses."""

from __future__ import annotations

from typing import Any

import torch
from threestudio.utils.misc import get_rank
from torch import Tensor

from carv3d.errors import UserError
from carv3d.estimator import Estimate
from carv3d.guidance import Guidance
from carv3d.integrations.threestudio.options import CarvOptions
from carv3d.loss import Carv
from carv3d.objectives import Objective
from carv3d.sampling import key
from carv3d.teachers.base import ScoreModel


class Distiller:
    """Draws K (t, eps) a render; the draws are a function of (seed, step, call within the step, rank).

    Lightning's checkpoints hold no generator, and launch.py seeds again on resume. With these draws a resumed run
    equals an uninterrupted one, and ranks have different draws.

    Attributes:
        carv: the estimator.
    """

    def __init__(
        self, options: CarvOptions, model: ScoreModel, guidance: Guidance, weighting: str, objective: Objective
    ) -> None:
        """Set up.

        Args:
            options: the guidance's config.
            model: predicts for the draws.
            guidance: makes one prediction of the model's branches.
            weighting: `weighting_strategy`.
            objective: what is distilled.

        Raises:
            ValueError: a value that `Carv` refuses, under the key's name here.
        """
        self.seed = max(torch.initial_seed() - get_rank(), 0)  # launch.py seeds with seed + rank
        try:
            self.carv = Carv(
                model,
                objective=objective,
                guidance=guidance,
                resamples=options.resamples,
                proposal=options.proposal,
                strata=options.strata,  # type: ignore[arg-type]
                coupling=options.coupling,
                weighting=weighting,  # type: ignore[arg-type]
                chunk=options.chunk,
                seed=self.seed % 2**63,
            )
        except (UserError, ValueError) as error:
            raise ValueError(f"system.guidance: {error}") from None
        self._step = self._call = 0

    def at(self, step: int, ends: tuple[int, int], clip: float | None) -> None:
        """Begin a step.

        Args:
            step: of threestudio.
            ends: smallest and largest timestep.
            clip: `grad_clip` at this step, or None.
        """
        if step != self._step:
            self._step, self._call = step, 0
        last = len(self.carv.w) - 1
        ends = (min(ends[0], last), min(ends[1], last))
        if ends != self.carv.t_range:
            self.carv.t_range = ends
        self.carv.clip = clip

    def rng(self) -> torch.Generator:
        """The generator of the next call of this step."""
        found = torch.Generator(self.carv.device).manual_seed(key(self.seed, self._step, self._call, get_rank()))
        self._call += 1
        return found

    def __call__(
        self, z: Tensor, condition: Any, rng: torch.Generator, *, name: str = "loss_sds"
    ) -> tuple[dict[str, Any], Estimate]:
        """The result of a guidance for threestudio's systems, and the estimate.

        Args:
            z: (B, C, h, w) latents with a graph, or without one in a validation.
            condition: of B rows.
            rng: see `rng`.
            name: of the loss.

        Returns:
            The loss, whose gradient at z is `fbar / B`, and figures to log, by name; what was drawn.
        """
        if z.requires_grad:
            loss, found = self.carv(z, condition, rng)
        else:
            found = self.carv.estimate(z, condition, rng)
            loss = found.fbar.square().sum() / (2 * len(z))
        low, high = self.carv.t_range
        out = {
            name: loss,
            "grad_norm": found.fbar.norm(),
            "min_step": low,
            "max_step": high,
            "effective_sample_size": found.effective_sample_size(),
        }
        if self.carv.resamples > 1:
            out["noise_share"] = found.noise_share()
        return out, found
