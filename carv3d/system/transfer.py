"""Numbers from the CPU to a device, without a wait of the host in a step."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


def sent(values: Tensor, device: torch.device | str) -> Tensor:
    """The values on a device. From the CPU to CUDA they go by way of pinned memory: an ordinary copy waits until the
    device has done all that it has been asked for.
    """
    if values.device.type == "cpu" and torch.device(device).type == "cuda":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def constant(like: Tensor, *values: float) -> Tensor:
    """Numbers with the type and device of another tensor. They are copied there once, and must not be changed."""
    return _constant(values, like.dtype, like.device)


@lru_cache(maxsize=256)
def _constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device)
