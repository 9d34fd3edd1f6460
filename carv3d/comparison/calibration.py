"""The cost of a step of each method. The methods take turns in one process, so that other load on the machine affects
all of them.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from carv3d import build
from carv3d.config import Config
from carv3d.teachers import Teacher
from carv3d.training.trainer import Trainer

_PILOT = 300  # most steps of a trial run; schedules are fractions of a run, so that a short run covers all of them
_TURN = 10  # steps
_WARM_UP = 3  # first steps, which are slower and are not timed


@dataclass(frozen=True)
class Cost:
    """The mean cost of a step in a run.

    Attributes:
        seconds: of wall clock.
        calls: (t, eps) draws for which the teacher predicts.
    """

    seconds: float
    calls: float


def step_costs(
    configs: Sequence[Config],
    prompt: str,
    device: torch.device,
    threads: int,
    watch: Callable[[float], None] = lambda _: None,
) -> list[Cost]:
    """The cost of a step of each config, from a short trial run of each.

    The cost changes during a run: scenes grow, occupancy removes empty cells, and K may be chosen during the run.

    Args:
        configs: all with one teacher, which is loaded once.
        prompt: what the scenes are trained on.
        device: of all of them.
        threads: of torch, as the runs will have.
        watch: called with the fraction that is done.

    Raises:
        UserError: the teacher cannot be loaded.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        teacher = build.teacher(configs[0], device)
        pilots = [_Pilot(config, prompt, device, teacher) for config in configs]
        while min(shares := [pilot.share for pilot in pilots]) < 1:
            watch(sum(shares) / len(shares))
            for pilot in pilots:
                pilot.turn()
        return [pilot.cost for pilot in pilots]
    finally:
        torch.set_num_threads(before)


class _Pilot:
    """A trial run, and the cost of its steps so far."""

    def __init__(self, config: Config, prompt: str, device: torch.device, teacher: Teacher) -> None:
        config = copy.deepcopy(config)
        config.prompt, config.device = prompt, str(device)
        share = min(1.0, _PILOT / config.training.steps)
        config.training.steps = round(share * config.training.steps)
        if hasattr(config.scene, "shortened"):  # the scene must become as large as in a whole run
            config.scene = config.scene.shortened(share)
        self._trainer = Trainer(config, teacher)
        self._left = max(1, config.training.steps - _WARM_UP)
        self._steps, self._calls, self._seconds = 0, 0, 0.0
        for _ in range(_WARM_UP):
            self._trainer.step()

    @property
    def share(self) -> float:
        return self._steps / (self._steps + self._left)

    @property
    def cost(self) -> Cost:
        return Cost(self._seconds / self._steps, self._calls / self._steps)

    def turn(self) -> None:
        """A few steps, if any are left."""
        count = min(_TURN, self._left)
        _wait(self._trainer.device)
        started = time.perf_counter()
        calls = sum(self._trainer.step().draws for _ in range(count))
        _wait(self._trainer.device)
        self._seconds += time.perf_counter() - started
        self._steps, self._calls, self._left = self._steps + count, self._calls + calls, self._left - count


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
