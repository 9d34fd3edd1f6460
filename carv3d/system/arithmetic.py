"""The number formats that a device supports in hardware. Emulated formats are many times slower."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from typing import Literal

import torch

log = logging.getLogger(__name__)

Precision = Literal["auto", "float32", "bfloat16"]


def is_fast(dtype: torch.dtype, device: torch.device | str) -> bool:
    """Whether a device supports a number format in hardware.

    A CPU with AVX2 alone, as most laptops have, computes in bfloat16 about 15 times slower than in float32.
    """
    device = torch.device(device)
    if dtype not in (torch.bfloat16, torch.float16):
        return True
    if device.type == "cpu":
        # torch has no public function for this.
        name = "bf16" if dtype == torch.bfloat16 else "fp16"
        ask = getattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported", None)
        return bool(ask()) if ask is not None else False
    if device.type == "cuda" and dtype == torch.bfloat16:
        return torch.cuda.get_device_capability(device)[0] >= 8
    return True


def network_dtype(asked: torch.dtype, device: torch.device | str) -> torch.dtype:
    """The number format of a teacher's networks: that of the config, or float32 on a CPU where it would be slow. On a
    CUDA device it is not replaced, because it also halves the memory.
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
