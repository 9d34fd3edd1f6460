"""The fake score: a trainable network that learns the score of the renders or of a generator's outputs.

Variational score distillation and distribution matching subtract it from the teacher's score.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from carv3d.runs.state import OptimizerState, Stateful, pack, unpack
from carv3d.sampling import draw, proposal, uniform_pmf
from carv3d.teachers.denoiser import Denoiser


class FakeScore:
    """A denoiser with its optimiser.

    Attributes:
        denoiser: the trained network.
        optimizer: Adam over its parameters.
    """

    def __init__(self, denoiser: Denoiser, lr: float, betas: Sequence[float]) -> None:
        """Set up.

        Args:
            denoiser: starts as the teacher's.
            lr, betas: of Adam.
        """
        self.denoiser = denoiser
        self.optimizer = torch.optim.Adam(denoiser.parameters(), lr=lr, betas=(betas[0], betas[1]))
        self._parts: dict[str, Stateful] = {"network": denoiser, "adam": OptimizerState(self.optimizer)}
        timesteps = len(denoiser.schedule)
        whole = uniform_pmf(timesteps, 0, timesteps - 1)
        self._q = proposal(whole, whole, "uniform").to(denoiser.schedule.device)

    def loss(self, z: Tensor, condition: Any, rng: torch.Generator) -> Tensor:
        """The usual training loss of a diffusion model on z (N, ...): the mean squared error of the prediction.

        The N timesteps are stratified over the batch and span the whole schedule; a scalar with a graph.
        """
        found = draw(len(z), 1, z.shape[1:], self._q, rng, z.dtype, strata="global")
        t, eps = found.t[:, 0], found.eps[:, 0]
        alpha, sigma = self.denoiser.schedule.at(t, z)
        error = self.denoiser.predict(alpha * z + sigma * eps, t, condition) - self.denoiser.target(z, t, eps)
        return error.square().mean()

    def step(self, loss: Tensor) -> None:
        """One step of the optimiser."""
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def eps_hat(self, z_t: Tensor, t: Tensor, condition: Any) -> Tensor:
        """The predicted noise (N, ...), without guidance."""
        return self.denoiser.eps_hat(z_t, t, condition)

    def state_dict(self) -> dict[str, Tensor]:
        """Parameters and moments, by name."""
        return pack(self._parts)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state_dict` gave.

        Raises:
            KeyError, RuntimeError, ValueError: the state is of another network.
        """
        unpack(self._parts, state)
