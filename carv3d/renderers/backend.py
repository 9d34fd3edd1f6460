"""The choice of a rendering backend: plain torch on any device, or compiled kernels behind the same call."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import torch

from carv3d.errors import UserError
from carv3d.renderers.config import Backend

log = logging.getLogger(__name__)

Problem = Callable[[torch.device], "str | None"]


def choose(asked: Backend, kernels: Mapping[str, Problem], device: torch.device) -> str:
    """One of the kernels, or "torch".

    Args:
        asked: by the config; "auto" is the first of the kernels that works, else torch. On CUDA the log says so in one
            line.
        kernels: those that draw this kind of scene, by name: the reason why one cannot render on a device, None if it
            can. The call may build it.
        device: where it will draw.

    Raises:
        UserError: a kernel is asked for and does not work here.
        ValueError: another kind of scene's kernel is asked for.
    """
    if asked not in ("auto", "torch", *kernels):
        raise ValueError(f"backend must be one of auto, torch, {', '.join(kernels)}, not {asked!r}")
    if asked == "torch":
        return "torch"
    reasons = []
    for name, problem in kernels.items():
        if asked not in ("auto", name):
            continue
        found = problem(device)
        if found is None:
            return name
        reasons.append(found)
    if asked != "auto":
        raise UserError(
            f"renderer.backend={asked}, but {reasons[0]}: use renderer.backend=torch, or see `carv3d doctor`"
        )
    if device.type == "cuda":
        log.info("renderer.backend=auto is torch here: %s", reasons[0])
    return "torch"
