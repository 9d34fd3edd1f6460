"""The choice of a rendering backend: plain torch on any device, or another package's CUDA kernels behind the same
call.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from carv3d.errors import UserError
from carv3d.renderers.config import Backend

log = logging.getLogger(__name__)

Problem = Callable[[torch.device], "str | None"]


def choose(asked: Backend, package: Backend, problem: Problem, device: torch.device) -> str:
    """`package`, or "torch".

    Args:
        asked: by the config; "auto" is the package where it works, else torch. On CUDA the log says so in one line.
        package: the one that draws this kind of scene.
        problem: the reason why it cannot render on a device, None if it can; it builds the kernels.
        device: where it will draw.

    Raises:
        UserError: the package is asked for and does not work here.
        ValueError: another kind of scene's package is asked for.
    """
    if asked not in ("auto", "torch", package):
        raise ValueError(f"backend must be auto, torch or {package}, got {asked!r}")
    if asked == "torch":
        return "torch"
    found = problem(device)
    if found is None:
        return package
    if asked == package:
        raise UserError(f"renderer.backend={package}, but {found}: use renderer.backend=torch, or see `carv3d doctor`")
    if device.type == "cuda":
        log.info("renderer.backend=auto is torch here: %s", found)
    return "torch"
