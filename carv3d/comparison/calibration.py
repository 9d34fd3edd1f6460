"""How long a step of each method takes, fairly: the methods take turns in one process."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Sequence

import torch

from carv3d import build
from carv3d.config import Config
from carv3d.training import Trainer

_WARM_UP = 3
_ROUNDS = 9
_STEPS = 3  # a round


def seconds_per_step(configs: Sequence[Config], prompt: str, device: torch.device, threads: int) -> list[float]:
    """Seconds per step of each config, median over rounds: what else the machine does in a round does not decide.

    Args:
        configs: all with one teacher, which is loaded once.
        prompt: what the scenes are trained on.
        device: of all of them.
        threads: of torch, as the runs will have.

    Raises:
        UserError: the teacher cannot be loaded.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        teacher = build.teacher(configs[0], device)
        trainers = []
        for config in configs:
            config = copy.deepcopy(config)
            config.prompt, config.device = prompt, str(device)
            trainers.append(Trainer(config, teacher))
        for trainer in trainers:
            _time(trainer, _WARM_UP)
        rounds = [[_time(trainer, _STEPS) for trainer in trainers] for _ in range(_ROUNDS)]
        return [statistics.median(column) for column in zip(*rounds, strict=True)]
    finally:
        torch.set_num_threads(before)


def _time(trainer: Trainer, steps: int) -> float:
    """Seconds per step."""
    _wait(trainer.device)
    started = time.perf_counter()
    for _ in range(steps):
        trainer.step()
    _wait(trainer.device)
    return (time.perf_counter() - started) / steps


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
