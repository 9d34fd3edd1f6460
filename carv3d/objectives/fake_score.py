"""The score of what is being made: a trainable network that follows the renders or a generator's outputs.

Variational score distillation and distribution matching subtract it from the teacher's score.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from carv3d.runs.checkpoints import optimizer_state, optimizer_tensors
from carv3d.sampling import draw, proposal, uniform_pmf
from carv3d.teachers.denoiser import Denoiser


class FakeScore:
    """A denoiser with its optimiser.

    Attributes:
        denoiser: what is trained.
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
        timesteps = len(denoiser.schedule)
        whole = uniform_pmf(timesteps, 0, timesteps - 1)
        self._q = proposal(whole, whole, "uniform").to(denoiser.schedule.device)

    def loss(self, z: Tensor, condition: Any, rng: torch.Generator) -> Tensor:
        """The ordinary loss of a diffusion model on z (N, ...): the mean squared error of what the network predicts.

        The N timesteps are stratified over the batch and span the whole schedule; a scalar with a graph.
        """
        found = draw(len(z), 1, z.shape[1:], self._q, rng, z.dtype, strata="global")
        t, eps = found.t[:, 0], found.eps[:, 0]
        alpha, sigma = self.denoiser.schedule.at(t, z)
        error = self.denoiser.predict(alpha * z + sigma * eps, t, condition) - self.denoiser.target(z, t, eps)
        return error.square().mean()

    def step(self, loss: Tensor) -> None:
        """One step of the optimiser down a loss."""
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def eps_hat(self, z_t: Tensor, t: Tensor, condition: Any) -> Tensor:
        """The noise (N, ...) that the network sees; without guidance."""
        return self.denoiser.eps_hat(z_t, t, condition)

    def state_dict(self) -> dict[str, Tensor]:
        """Parameters and moments, by name."""
        state = {f"network.{name}": tensor for name, tensor in self.denoiser.state_dict().items()}
        return state | optimizer_tensors(self.optimizer.state_dict(), "adam")[0]

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state_dict` gave.

        Raises:
            KeyError, RuntimeError, ValueError: the state is of another network.
        """
        prefix = "network."
        own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        self.denoiser.load_state_dict(own)
        groups = self.optimizer.state_dict()["param_groups"]  # rates come from the config
        self.optimizer.load_state_dict(optimizer_state(state, groups, "adam"))
