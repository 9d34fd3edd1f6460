"""The state of a training as tensors by name, which a checkpoint keeps.

Every part that the next step depends on has `state_dict()` and `load_state_dict(state)`, with tensors by name. `pack`
makes one dictionary of the parts, and `unpack` gives each part its own back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from carv3d.errors import UserError


class Stateful(Protocol):
    """A part whose state is tensors by name."""

    def state_dict(self) -> Mapping[str, Tensor]:
        """All that the next step depends on."""
        ...

    def load_state_dict(self, state: dict[str, Tensor], /) -> Any:
        """Go on from what `state_dict` gave.

        Raises:
            KeyError, RuntimeError, ValueError: the state is of another part.
        """
        ...


def pack(parts: Mapping[str, Stateful]) -> dict[str, Tensor]:
    """The tensors of all parts, as `<part>.<name>`."""
    return {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}


def unpack(parts: Mapping[str, Stateful], tensors: Mapping[str, Tensor]) -> None:
    """Give each part the tensors that `pack` took from it."""
    for name, part in parts.items():
        prefix = f"{name}."
        part.load_state_dict({key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)})


class OptimizerState:
    """The moments of an optimizer, as `<parameter>.<name>`. Its learning rates come from the config."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def state_dict(self) -> dict[str, Tensor]:
        """See `Stateful`.

        Raises:
            TypeError: the optimizer keeps something else than tensors.
        """
        moments: dict[str, Tensor] = {
            f"{index}.{name}": value
            for index, values in self.optimizer.state_dict()["state"].items()
            for name, value in values.items()
        }
        if odd := [name for name, value in moments.items() if not isinstance(value, Tensor)]:
            raise TypeError(f"only optimizers whose state is tensors can be saved, not {odd[0]}")
        return moments

    def load_state_dict(self, state: dict[str, Tensor], /) -> None:
        """See `Stateful`."""
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in state.items():
            index, name = key.split(".", 1)
            moments.setdefault(int(index), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})


class GeneratorState:
    """The state of a random generator, as one uint8 tensor."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def state_dict(self) -> dict[str, Tensor]:
        """See `Stateful`."""
        return {"train": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor], /) -> None:
        """See `Stateful`.

        Raises:
            UserError: the state is of another kind of device.
        """
        try:
            self.generator.set_state(state["train"])
        except (RuntimeError, TypeError) as error:
            raise UserError(
                f"the run's random numbers cannot be continued on {self.generator.device.type}; "
                "resume it on the kind of device it was started on"
            ) from error
