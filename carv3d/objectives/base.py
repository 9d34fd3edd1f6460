"""The interface of objectives. Their fields are keys of the config; therefore this file does not import torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from carv3d.config.keys import Weighting
    from carv3d.guidance import Branch, Guidance
    from carv3d.teachers.base import ScoreModel
    from carv3d.teachers.schedule import NoiseSchedule


@dataclass(frozen=True)
class Draw:
    """N draws (t, eps) of latents, with the predictions that an objective needs.

    Attributes:
        model: the score model.
        guidance: makes one prediction of its branches.
        z: (N, ...) latents.
        t: (N,) timesteps.
        eps: (N, ...) noises.
        condition: of the score model, N rows.
    """

    model: ScoreModel
    guidance: Guidance
    z: Tensor
    t: Tensor
    eps: Tensor
    condition: Any

    @cached_property
    def z_t(self) -> Tensor:
        """(N, ...) the noised latents, `alpha_t z + sigma_t eps`."""
        alpha, sigma = self.model.schedule.at(self.t, self.z)
        return alpha * self.z + sigma * self.eps

    def predict(self) -> dict[Branch, Tensor]:
        """The raw noise predictions of the guidance's branches, "cond" among them, in one call of the score model."""
        return self.model.predict(self.z_t, self.t, self.condition, self.guidance.branches)

    def guided(self, raw: dict[Branch, Tensor]) -> Tensor:
        """(N, ...) the guided prediction of raw ones."""
        return self.guidance(raw, self.condition)


class Objective(ABC):
    """An objective: a step follows `E[w(t) residual]`, estimated by `carv3d.estimator`.

    Subclasses are dataclasses; their fields are the keys of `guidance.objective` in a config. One object belongs to
    one run. An objective with parameters of its own makes them in `prepare`, trains them in `update`, and keeps them
    in `state_dict`.
    """

    @abstractmethod
    def residual(self, draw: Draw) -> Tensor:
        """The residual (N, ...) of N draws. No gradient is kept. It may call the score model more than once."""

    def weight(self, schedule: NoiseSchedule, weighting: Weighting) -> Tensor:
        """w(t), (T,) float64 on the CPU.

        Args:
            schedule: of the score model.
            weighting: of the config, see `carv3d.sampling.sds_weight`.
        """
        from carv3d.sampling import sds_weight

        return sds_weight(schedule.alpha.cpu(), schedule.sigma.cpu(), weighting)

    def prepare(self, model: ScoreModel, guidance: Guidance, seed: int) -> None:  # noqa: B027
        """Called once, before the first draw: make the objective's own parameters.

        Args:
            model: the score model.
            guidance: of the run.
            seed: of the run; random numbers are functions of it.

        Raises:
            UserError: the objective cannot use the model or the guidance.
        """

    def update(self, z: Tensor, condition: Any, rng: torch.Generator) -> dict[str, Tensor]:
        """Called after each optimiser step: train the objective's own parameters.

        Args:
            z: (R, ...) the step's latents, detached.
            condition: R rows.
            rng: every random number comes from it; on the device of z.

        Returns:
            scalars to log, by name, on the device.
        """
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """All that the next step depends on, by name."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state_dict` gave.

        Raises:
            KeyError, RuntimeError, ValueError: the state is of another objective.
        """
        if state:
            raise ValueError(f"{type(self).__name__} has no state, and the checkpoint has {', '.join(state)}")

    def rules(self, prefix: str) -> Iterable[tuple[str, Any, bool, str]]:
        """Rules on the fields, see `carv3d.config.validate`; prefix is "guidance.objective"."""
        return ()
