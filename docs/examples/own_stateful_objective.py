r"""An objective with a state of its own, in one file: score distillation whose gradient keeps its size.

    PYTHONPATH=docs/examples carv3d generate "a red mushroom" \
        guidance.objective=own_stateful_objective.Normalised

The residual is divided by a running root mean square of those before. The divisor does not depend on the step's own
draws, so that the direction of the expected gradient stays as it is. The state is saved in checkpoints, and goes on
after --resume. `carv3d/objectives/vsd.py` is a larger example: it trains a network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from carv3d.guidance import Guidance
from carv3d.objectives import Draw, Objective
from carv3d.teachers import ScoreModel


@dataclass
class Normalised(Objective):
    """Score distillation with residuals of about the same size all through the run."""

    decay: float = 0.9  # of the running mean of squares, a step

    def prepare(self, model: ScoreModel, guidance: Guidance, seed: int) -> None:
        """Called once: make the state; here is the place to refuse a model that will not do."""
        self._square = torch.ones((), device=model.schedule.device)
        self._seen = self._square

    def residual(self, draw: Draw) -> Tensor:
        """`(eps_guided - eps) / rms`."""
        found = draw.guided(draw.predict()) - draw.eps
        self._seen = found.square().mean()
        return found / self._square.sqrt()

    def update(self, z: Tensor, condition: Any, rng: torch.Generator) -> dict[str, Tensor]:
        """Called after each optimiser step. What is returned is logged."""
        self._square = self.decay * self._square + (1 - self.decay) * self._seen
        return {"residual_rms": self._square.sqrt()}

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return {"square": self._square}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a checkpoint."""
        self._square = state["square"].to(self._square.device)
