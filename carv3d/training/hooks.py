"""Hooks of a training step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from carv3d.estimator import Estimate

if TYPE_CHECKING:
    from carv3d.training.trainer import Trainer


class StepHook:
    """Called at points of `Trainer.step`. Every method does nothing unless a subclass overrides it."""

    @property
    def extra_draws(self) -> int:
        """Sets of draws that the hook took in this step, besides the step's own."""
        return 0

    def before_step(self, trainer: Trainer) -> None:
        """Before the step renders."""

    def after_estimate(self, trainer: Trainer, z: Tensor, condition: Any, found: Estimate) -> None:
        """After the estimate and before the backward pass: the graph is in memory.

        Args:
            trainer: in the step.
            z: (R, C, h, w) latents, with a graph.
            condition: of R rows.
            found: the estimate.
        """

    def after_backward(self, trainer: Trainer) -> None:
        """After the backward pass and before the optimiser."""

    def figures(self, trainer: Trainer) -> dict[str, Tensor]:
        """Scalars to log, by name."""
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """See `carv3d.runs.state.Stateful`."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor], /) -> None:
        """See `carv3d.runs.state.Stateful`."""
