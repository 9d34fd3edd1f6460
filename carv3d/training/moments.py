"""What an optimiser knows of parameters whose rows come and go."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from carv3d.scenes import RowMap


def carry_moments(optimizer: torch.optim.Optimizer, parameters: Sequence[torch.nn.Parameter], changed: RowMap) -> None:
    """Give every row of the parameters the moments of the row it comes from, and reset parameters none.

    A row's twin moves as the row did: its gradient is what the row's would have been, up to a factor that Adam
    divides out.

    Args:
        optimizer: of these parameters and perhaps others, which stay as they are.
        parameters: all those that `changed` speaks of.
        changed: where their rows come from.
    """
    reset = {id(parameter) for parameter in changed.reset}
    for parameter in parameters:
        state = optimizer.state.get(parameter, {})
        for name, value in state.items():
            if value.dim():  # Adam's count of steps is a single number
                carried = value[changed.parents]
                state[name] = torch.zeros_like(carried) if id(parameter) in reset else carried
