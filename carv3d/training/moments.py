"""The optimiser's state of parameters whose rows change."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from carv3d.scenes import RowMap


def carry_moments(optimizer: torch.optim.Optimizer, parameters: Sequence[torch.nn.Parameter], changed: RowMap) -> None:
    """Give every row of the parameters the moments of the row that it comes from, and clear those of reset
    parameters. Both rows of a clone or split get the moments of the old row: their gradients equal its gradient up to
    a factor, which Adam divides out.

    Args:
        optimizer: of these parameters and perhaps others, whose state does not change.
        parameters: those whose rows changed. changed: where their rows come from.
    """
    reset = {id(parameter) for parameter in changed.reset}
    for parameter in parameters:
        state = optimizer.state.get(parameter, {})
        for name, value in state.items():
            if value.dim():  # Adam's step count has no rows
                carried = value[changed.parents]
                state[name] = torch.zeros_like(carried) if id(parameter) in reset else carried
