"""Which number formats a device computes in quickly. A format that it only emulates is many times slower."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from typing import Literal

import torch

log = logging.getLogger(__name__)

Precision = Literal["auto", "float32", "bfloat16"]


def is_fast(dtype: torch.dtype, device: torch.device | str) -> bool:
    """Whether a device has arithmetic of its own for a number format.

    A CPU with AVX2 alone, as most laptops have, computes in bfloat16 about 15 times slower than in float32.
    """
    device = torch.device(device)
    if dtype not in (torch.bfloat16, torch.float16):
        return True
    if device.type == "cpu":
        # torch offers no public question for this.
        name = "bf16" if dtype == torch.bfloat16 else "fp16"
        ask = getattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported", None)
        return bool(ask()) if ask is not None else False
    if device.type == "cuda" and dtype == torch.bfloat16:
        return torch.cuda.get_device_capability(device)[0] >= 8
    return True


def network_dtype(asked: torch.dtype, device: torch.device | str) -> torch.dtype:
    """The number format of a teacher's networks: what the config asks for, or float32 where that would be slow.

    On a CUDA device nothing is replaced: half the memory may be the reason for the request.
    """
    if torch.device(device).type != "cpu" or is_fast(asked, device):
        return asked
    log.info("this CPU has no %s arithmetic: the teacher computes in float32", str(asked).removeprefix("torch."))
    return torch.float32


def autocast(precision: Precision, device: torch.device | str) -> AbstractContextManager[None]:
    """The context in which networks are trained: float32, or bfloat16 by autocast.

    Args:
        precision: "auto" is bfloat16 where the device is fast in it, else float32.
        device: of the networks.
    """
    device = torch.device(device)
    enabled = precision == "bfloat16" or (precision == "auto" and is_fast(torch.bfloat16, device))
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)
