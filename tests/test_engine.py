"""The loop around the steps: what is done when, and what is left when a run stops or diverges."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.progress import Progress
from torch import Tensor

from carv3d.config import Config
from carv3d.errors import UserError
from carv3d.runs import Run, read_metrics
from carv3d.runs.state import GeneratorState, pack, unpack
from carv3d.training.engine import Callback, Engine, StepLog, resume


class Walk:
    """A random walk: each step adds a number from the generator."""

    def __init__(self, wait: float = 0.0, fails_at: int = 0) -> None:
        self.step_count, self.wait, self.fails_at = 0, wait, fails_at
        self.place = torch.zeros(1)
        self.rng = torch.Generator().manual_seed(0)

    def step(self) -> StepLog:
        time.sleep(self.wait)
        if self.step_count + 1 == self.fails_at:
            raise FloatingPointError("the walk is not finite")
        self.place = self.place + torch.randn(1, generator=self.rng)
        self.step_count += 1
        return StepLog(self.step_count, {"place": self.place[0]})

    def state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return {"place": self.place}, pack({"generator": GeneratorState(self.rng)})

    def load_state(self, step: int, trained: dict[str, Tensor], state: dict[str, Tensor]) -> None:
        self.place = trained["place"]
        unpack({"generator": GeneratorState(self.rng)}, state)
        self.step_count = step


def engine(run: Run, walk: Walk, *callbacks: Callback, **more: Any) -> Engine:
    how = {"bars": Progress(disable=True), "title": "walking", "shown": lambda row: "", "remedy": "shorter strides"}
    return Engine(run, walk, callbacks, **how, **more)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Run]:
    def run(steps: int, checkpoint_every: int = 0) -> Run:
        config = Config(prompt="a walk")
        config.training.steps, config.training.checkpoint_every = steps, checkpoint_every
        return Run.create(config, "walks", "test", folder=tmp_path / "run")

    return run


def test_callbacks_and_checkpoints_come_when_they_are_due(make: Callable[..., Run]) -> None:
    """At multiples of their interval, some also at the end, the checkpoint last; every step has its figures."""
    done: list[tuple[str, int]] = []
    three = Callback(3, lambda step: done.append(("three", step)))
    end = Callback(0, lambda step: done.append(("end", step)), at_end=True)
    with make(25, checkpoint_every=10) as run:
        save = run.save_checkpoint
        run.save_checkpoint = lambda step, *args: (done.append(("save", step)), save(step, *args))[1]  # type: ignore
        engine(run, Walk(), three, end).train()
        rows = read_metrics(run.metrics_path)
        assert list(run.checkpoints.paths()) == [20, 25]
    assert [row["step"] for row in rows] == list(range(1, 26))
    expected = [("three", step) for step in range(3, 25, 3)] + [("save", 10), ("save", 20), ("end", 25), ("save", 25)]
    assert sorted(done) == sorted(expected)
    assert done[-2:] == [("end", 25), ("save", 25)]


def test_a_stopped_walk_goes_on_where_it_was(make: Callable[..., Run]) -> None:
    """SIGINT lets the step finish and saves; the resumed walk ends where an uninterrupted one does."""
    whole = Walk()
    for _ in range(12):
        whole.step()
    with make(12) as run:
        stopped, resumed = Walk(), Walk()
        kill = Callback(5, lambda step: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            engine(run, stopped, kill).train()
        assert list(run.checkpoints.paths()) == [6]  # the step after the signal's
        seconds = resume(run, resumed)
        engine(run, resumed, seconds=seconds).train()
    assert torch.equal(resumed.place, whole.place)


def test_divergence_keeps_the_checkpoint_before_it(make: Callable[..., Run]) -> None:
    """The error names the step, the checkpoint to go on from, and the remedy."""
    with make(20, checkpoint_every=4) as run:
        with pytest.raises(
            UserError, match=r"step 11: the walk is not finite; the checkpoint of step 8 is kept.*--res"
        ):
            engine(run, Walk(fails_at=11)).train()
        assert max(run.checkpoints.paths()) == 8


def test_divergence_without_a_checkpoint(make: Callable[..., Run]) -> None:
    with make(20) as run, pytest.raises(UserError, match="no checkpoint was saved: start a new run with shorter str"):
        engine(run, Walk(fails_at=3)).train()


def test_the_time_of_callbacks_is_not_training_time(make: Callable[..., Run]) -> None:
    """Previews and checkpoints must not count against a method in a comparison."""
    with make(4) as run:
        walking = engine(run, Walk(wait=0.02), Callback(1, lambda step: time.sleep(0.2)))
        walking.train()
    assert 0.08 <= walking.seconds < 0.4
