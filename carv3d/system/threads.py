"""The CPU threads that torch uses."""

from __future__ import annotations

import os

import torch


def cores() -> int:
    """The CPU cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_threads(threads: int) -> None:
    """Let torch use this many threads; 0: one for each core."""
    torch.set_num_threads(threads or cores())
