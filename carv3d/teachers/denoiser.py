"""A trainable version of a teacher's denoiser: a copy of it, or low-rank additions to its frozen weights."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from carv3d.errors import UserError
from carv3d.teachers.families import Family

_ATTENTION = re.compile(r"(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)(\.base_layer)?$")  # as peft wraps it


class LowRank(nn.Module):
    """A frozen network whose attention layers have weights `W + B A` (LoRA, Hu et al., arXiv 2106.09685).

    The network is shared and does not change: its weights are replaced during a call.
    """

    def __init__(self, network: nn.Module, rank: int, seed: int) -> None:
        """Make the additions, which are zero at the start.

        Args:
            network: frozen.
            rank: of the additions, at least 1.
            seed: of the first factors.

        Raises:
            UserError: the network has no attention layers.
        """
        super().__init__()
        self._network = (network,)  # in a tuple, so that its parameters do not count as this module's
        layers = {
            name: layer
            for name, layer in network.named_modules()
            if isinstance(layer, nn.Linear) and _ATTENTION.search(name)
        }
        if not layers:
            raise UserError("the teacher's network has no attention layers that low-rank additions fit: use rank=0")
        if any(not layer.weight.is_floating_point() for layer in layers.values()):
            raise UserError("the teacher's attention layers are quantised, so that low-rank additions do not fit them")
        self.names = [f"{name}.weight" for name in layers]
        rng = torch.Generator().manual_seed(seed)
        self.first, self.second = nn.ParameterList(), nn.ParameterList()
        for layer in layers.values():
            device, (rows, columns) = layer.weight.device, layer.weight.shape
            start = torch.randn(rank, columns, generator=rng) / columns**0.5
            self.first.append(nn.Parameter(start.to(device)))
            self.second.append(nn.Parameter(torch.zeros(rows, rank, device=device)))

    @property
    def config(self) -> Any:
        """Of the network."""
        return self._network[0].config

    def is_untrained(self) -> bool:
        """Whether the additions are still zero. Waits for the device."""
        return not any(bool(factor.any()) for factor in self.second)

    def forward(self, *args: Any, **options: Any) -> Any:
        """The network's output with the additions."""
        network = self._network[0]
        weights = {
            name: (own := network.get_parameter(name)) + (b @ a).to(own.dtype)
            for name, a, b in zip(self.names, self.first, self.second, strict=True)
        }
        return functional_call(network, weights, args, options)


class Denoiser:
    """A trainable denoiser that starts as the teacher's. It has the same conditions, without guidance.

    Attributes:
        network: what is trained.
        schedule: the teacher's.
    """

    def __init__(self, family: Family, *, rank: int = 0, seed: int = 0) -> None:
        """Copy the network in float32, or make additions to it.

        Args:
            family: the teacher's, which does not change.
            rank: of additions to the frozen network's attention layers; 0 for a copy of the whole network.
            seed: of the additions.

        Raises:
            UserError: additions to a network without attention layers.
        """
        self._family = copy.copy(family)
        if rank:
            self._family.network = LowRank(family.network, rank, seed)
        else:
            self._family.loader = replace(family.loader, dtype=torch.float32)
            self._family.network = copy.deepcopy(family.network).float().requires_grad_(True)
        self.schedule = family.schedule

    @property
    def network(self) -> nn.Module:
        """See the class."""
        return self._family.network

    def parameters(self) -> Iterator[nn.Parameter]:
        """What is trained."""
        return self.network.parameters()

    def state_dict(self) -> dict[str, Tensor]:
        """The trained tensors by name, without those of a frozen network."""
        return dict(self.network.state_dict())

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Put back what `state_dict` gave.

        Raises:
            RuntimeError: the state is of another network.
        """
        self.network.load_state_dict(state)

    def predict(self, z_t: Tensor, t: Tensor, condition: Any) -> Tensor:
        """The network's own prediction (N, C, h, w) for noised latents z_t (N, C, h, w), t (N,), N rows."""
        embeddings = self._family.cast(condition.mixed(condition.cond))
        return self._family.predict(z_t, t, embeddings, condition.camera)

    def target(self, z: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """The training target of `predict` for latents z noised by eps, in the network's kind of prediction."""
        alpha, sigma = self.schedule.at(t, z)
        match self._family.prediction:
            case "v_prediction":
                return alpha * eps - sigma * z
            case "flow":
                return eps - z
        return eps

    def eps_hat(self, z_t: Tensor, t: Tensor, condition: Any) -> Tensor:
        """The predicted noise (N, C, h, w)."""
        return self._family.eps_hat(z_t, t, condition.mixed(condition.cond), condition.camera)

    def one_step(self, noise: Tensor, timestep: int, condition: Any) -> Tensor:
        """Latents (N, C, h, w) from noise (N, C, h, w) in one call: `(noise - sigma eps_hat) / alpha` at `timestep`.

        DMD (Yin et al., arXiv 2311.18828, section 3.1): the generator is a denoiser at a fixed timestep, applied to
        pure noise.
        """
        t = torch.full((len(noise),), timestep, device=noise.device)
        alpha, sigma = self.schedule.at(t, noise)
        return (noise - sigma * self.eps_hat(noise, t, condition)) / alpha
