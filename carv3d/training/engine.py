"""The loop around the steps of any training: figures, pictures, checkpoints, and how a run stops and goes on."""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from rich.progress import Progress
from torch import Tensor

from carv3d.errors import UserError
from carv3d.loss import check_finite
from carv3d.runs import Checkpoint, Interruption, RunFolder

log = logging.getLogger(__name__)

# Figures are fetched from the device after this many steps or seconds: a fetch makes the CPU wait.
_FETCH_STEPS, _FETCH_SECONDS = 10, 2.0


@dataclass
class StepLog:
    """Figures of one step, still on the device.

    Attributes:
        step: number of steps done, this one included.
        figures: scalar tensors by name, on one device.
        t, norm: (R, K) timesteps, and norms of the weighted residuals; None if they are checked already.
        draws: number of (t, eps) draws of the step.
    """

    step: int
    figures: dict[str, Tensor] = field(default_factory=dict)
    t: Tensor | None = None
    norm: Tensor | None = None
    draws: int = 0


class Stopped(KeyboardInterrupt):
    """The run was stopped, and a checkpoint of the last step has been saved."""


def how_it_goes_on(run: RunFolder[Any], error: KeyboardInterrupt) -> str:
    """What a stopped run has saved, and the command that goes on with it."""
    command = f"carv3d {run.verb} --resume {shlex.quote(str(run.path))}"
    if isinstance(error, Stopped):
        return f"stopped and saved; go on with: {command}"
    kept = max(run.checkpoints.paths(), default=None)
    if kept is not None:
        return f"stopped; the checkpoint of step {kept} is kept; go on with: {command}"
    return f"stopped before the first checkpoint; start again with: {command}"


class Trainable(Protocol):
    """What the engine trains. The same state gives the same next step."""

    step_count: int

    def step(self) -> StepLog:
        """One step.

        Raises:
            ArithmeticError: something diverged or is not finite; the message says what.
        """
        ...

    def state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The result of the training, and all else that the next step depends on."""
        ...

    def load_state(self, step: int, trained: dict[str, Tensor], state: dict[str, Tensor]) -> None:
        """Go on after `step` steps, from what `state` gave.

        Raises:
            KeyError, RuntimeError, ValueError: the state is of another config.
        """
        ...


@dataclass(frozen=True)
class Callback:
    """Something that is done after some of the steps.

    Attributes:
        every: steps between two times; 0: never.
        action: takes the number of steps done.
        at_end: whether it is also done after the last step, and when the run is stopped.
    """

    every: int
    action: Callable[[int], None]
    at_end: bool = False

    def due(self, step: int, last: bool) -> bool:
        """Whether the action is due after `step` steps."""
        return (last and self.at_end) or (self.every > 0 and step % self.every == 0)


class Engine:
    """Trains for the steps of the run's config, and writes the run's folder.

    Ctrl-C and SIGTERM let the step in hand finish; then the callbacks of the end run, a checkpoint among them.

    Args:
        run: open for writing.
        trainer: what is trained.
        callbacks: done in this order, before the checkpoint of the same step.
        bars: where the progress bar goes.
        title: of the bar.
        shown: the text beside the bar, of a step's figures.
        remedy: what may keep the training from diverging, for the error that says so.
        seconds: of training, in earlier processes.
    """

    def __init__(
        self,
        run: RunFolder[Any],
        trainer: Trainable,
        callbacks: Sequence[Callback],
        *,
        bars: Progress,
        title: str,
        shown: Callable[[dict[str, float]], str],
        remedy: str,
        seconds: float = 0.0,
    ) -> None:
        self.run, self.trainer, self.bars = run, trainer, bars
        training = run.config.training
        self.steps = training.steps
        self.callbacks = [*callbacks, Callback(training.checkpoint_every, self.save, at_end=True)]
        self.shown, self.remedy, self.seconds = shown, remedy, seconds
        self.metrics = run.metrics(resume_step=trainer.step_count)
        self.task = bars.add_task(title, total=self.steps, completed=trainer.step_count, figures="")
        self._pending: list[StepLog] = []

    def train(self) -> None:
        """Train to the end.

        Raises:
            UserError: the training diverged; no checkpoint is made of it.
            Stopped: by Ctrl-C or SIGTERM; a checkpoint has been saved.
            KeyboardInterrupt: by a second one; nothing has been saved since the last checkpoint.
        """
        started = time.perf_counter()
        with Interruption() as interruption:
            while self.trainer.step_count < self.steps:
                with self._explained(f"step {self.trainer.step_count + 1}: "):
                    self._pending.append(self.trainer.step())
                step = self.trainer.step_count
                stop = interruption.asked  # read once, so that a stop between here and the end saves a checkpoint
                due = [callback for callback in self.callbacks if callback.due(step, stop or step == self.steps)]
                elapsed = time.perf_counter() - started
                if due or len(self._pending) == _FETCH_STEPS or elapsed > _FETCH_SECONDS:
                    self.seconds += elapsed
                    self._fetch()
                    for callback in due:
                        callback.action(step)
                    started = time.perf_counter()  # the time of callbacks is not training time
                if stop:
                    raise Stopped

    def save(self, step: int) -> None:
        """Save a checkpoint."""
        self.metrics.sync()
        trained, state = self.trainer.state()
        self.run.save_checkpoint(step, trained, state, {"seconds": self.seconds})

    def _fetch(self) -> None:
        """Write the figures of the steps since the last fetch."""
        if not self._pending:
            return
        with self._explained():
            rows = fetch(self._pending)
        for record, row in zip(self._pending, rows, strict=True):
            self.metrics.write(record.step, row | {"seconds": self.seconds})
        self._pending.clear()
        self.bars.update(self.task, completed=self.trainer.step_count, figures=self.shown(rows[-1]))

    @contextmanager
    def _explained(self, where: str = "") -> Iterator[None]:
        """Says what to do about a training that diverges; `where` precedes the error."""
        try:
            yield
        except ArithmeticError as error:
            command = f"carv3d {self.run.verb}"
            kept = max(self.run.checkpoints.paths(), default=None)
            what = "no checkpoint was saved: start a new run"
            if kept is not None:
                what = f"the checkpoint of step {kept} is kept: go on from it with {command} --resume {self.run.path}"
            raise UserError(f"{where}{error}; {what} with {self.remedy}") from error


def fetch(logs: Sequence[StepLog]) -> list[dict[str, float]]:
    """The figures of some steps, fetched from the device in one transfer.

    Raises:
        FloatingPointError: a figure is not finite; names the step, and the timesteps of a residual.
    """
    stacked = torch.stack([torch.stack([f.float() for f in log.figures.values()]) for log in logs]).tolist()
    for log, row in zip(logs, stacked, strict=True):
        if not all(abs(x) < float("inf") for x in row):
            if log.norm is not None and log.t is not None:
                try:
                    check_finite(log.norm, log.t)
                except FloatingPointError as error:
                    raise FloatingPointError(f"step {log.step}: {error}") from None
            raise FloatingPointError(f"step {log.step}: the gradient is not finite, though the residuals are")
    return [dict(zip(log.figures, row, strict=True)) for log, row in zip(logs, stacked, strict=True)]


def resume(run: RunFolder[Any], trainer: Trainable, *, step: int | None = None, changed: bool = False) -> float:
    """Load a checkpoint of a run, the newest or that of a step, into a trainer of its config.

    Args:
        run: has the checkpoint.
        trainer: of the run's config, or of a changed one.
        step: of the checkpoint.
        changed: whether the trainer's config is not the one that the checkpoint was made with.

    Returns:
        the seconds of training before the checkpoint.

    Raises:
        UserError: no checkpoint, a damaged one, or one that does not fit the config.
    """
    checkpoint = run.load_checkpoint(step)
    with fitting(run, changed=changed):
        trainer.load_state(checkpoint.step, checkpoint.trained, checkpoint.state)
    return seconds_of(checkpoint)


def seconds_of(checkpoint: Checkpoint) -> float:
    """The seconds of training before a checkpoint."""
    seconds = checkpoint.info.get("seconds", 0.0)
    return float(seconds) if isinstance(seconds, (int, float)) else 0.0


@contextmanager
def fitting(run: RunFolder[Any], *, changed: bool = False) -> Iterator[None]:
    """Turns the errors of a state that does not fit into a UserError."""
    try:
        yield
    except (RuntimeError, KeyError, ValueError) as error:
        first = " ".join(str(error).split())[:160]
        if changed:
            raise UserError(
                f"what was changed does not fit the checkpoint in {run.path}: leave it out, or start a new run "
                f"({first})"
            ) from error
        raise UserError(
            f"the checkpoint in {run.path} is not of this run's config; start the run anew ({first})"
        ) from error


def refuse_fewer_steps(run: RunFolder[Any], done: int, asked: int) -> None:
    """Refuse to resume a run that has done more steps than are asked for.

    Raises:
        UserError: says how many are done.
    """
    if done > asked:
        raise UserError(f"training.steps={asked}, but {run.path} has done {done}: give more")
