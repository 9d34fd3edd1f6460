"""Variational score distillation (Wang et al., "ProlificDreamer", arXiv 2305.16213, equation 9 and algorithm 1).

The prediction of a second network, the fake score, replaces the noise that SDS subtracts. The fake score is trained
on the renders during the run. It has the teacher's condition, including the camera if the teacher takes one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from carv3d.config.keys import Betas, Key
from carv3d.errors import UserError
from carv3d.objectives.base import Draw, Objective

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from carv3d.guidance import Guidance
    from carv3d.objectives.fake_score import FakeScore
    from carv3d.teachers.base import ScoreModel


@dataclass
class Vsd(Objective):
    """Variational score distillation: the guided prediction minus that of a network trained on the renders."""

    rank: Annotated[
        int, Key("of LoRA additions to the teacher's attention layers; 0: a copy of its whole network", ge=0)
    ] = 4
    lr: Annotated[float, Key("of Adam, of the fake score", gt=0)] = 1e-3
    betas: Betas = field(default_factory=lambda: [0.9, 0.999])
    updates: Annotated[int, Key("of the fake score, a step", ge=1)] = 1
    draws: Annotated[int, Key("noised copies of each render in an update", ge=1)] = 1

    def residual(self, draw: Draw) -> Tensor:
        """`eps_guided - eps_fake`."""
        return draw.guided(draw.predict()) - self._fake.eps_hat(draw.z_t, draw.t, draw.condition)

    def prepare(self, model: ScoreModel, guidance: Guidance, seed: int) -> None:
        """See `Objective`; needs a teacher whose network can be trained."""
        from carv3d.objectives.fake_score import FakeScore

        trainable = getattr(model, "trainable", None)
        if trainable is None:
            raise UserError("objective vsd trains a network that starts as the teacher's, and this teacher has none")
        self._fake: FakeScore = FakeScore(trainable(rank=self.rank, seed=seed), self.lr, self.betas)

    @property
    def network(self) -> torch.nn.Module:
        """The trained network, for a framework with its own optimiser, which calls `loss` and not `update`."""
        return self._fake.denoiser.network

    def loss(self, z: Tensor, condition: Any, rng: torch.Generator) -> Tensor:
        """The fake score's loss on `draws` noised copies of each render, with a graph to `network`; see `FakeScore`."""
        import torch

        rows = torch.arange(len(z), device=z.device).repeat_interleave(self.draws)
        return self._fake.loss(z[rows], condition[rows], rng)

    def update(self, z: Tensor, condition: Any, rng: torch.Generator) -> dict[str, Tensor]:
        """See `Objective`: the fake score learns from the step's renders."""
        for _ in range(self.updates):
            loss = self.loss(z, condition, rng)
            self._fake.step(loss)
        return {"fake_loss": loss.detach()}

    def state_dict(self) -> dict[str, Tensor]:
        """See `Objective`."""
        return self._fake.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """See `Objective`."""
        self._fake.load_state_dict(state)
