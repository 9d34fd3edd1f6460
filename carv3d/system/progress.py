"""Progress: steps done and in all, elapsed time, remaining time. Bars on a terminal, lines elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

SECONDS = 30.0
"""Between two lines where the output is no terminal: a file, or the log of a cluster."""


class Lines(Progress):
    """Prints lines instead of drawing bars: one for each unfinished task every SECONDS, and a last one for each whose
    length is known.
    """

    def __init__(self, *columns: ProgressColumn, **options: Any) -> None:
        super().__init__(*columns, **options | {"disable": True})
        self._ended = threading.Event()
        self._said: dict[int, float] = {}

    def start(self) -> None:
        """Begin to print."""
        super().start()
        threading.Thread(target=self._watch, daemon=True, name="carv3d-progress").start()

    def stop(self) -> None:
        """Print where each task ended, and stop."""
        if not self._ended.is_set():
            self._ended.set()
            for task in self.tasks:
                if task.total is not None:
                    self._say(task)
        super().stop()

    def _watch(self) -> None:
        while not self._ended.wait(SECONDS):
            for task in self.tasks:
                if not task.finished:
                    self._say(task)

    def _say(self, task: Task) -> None:
        if not task.visible or self._said.get(task.id) == task.completed == task.total:
            return
        self._said[task.id] = task.completed
        of = "" if task.total is None else f" {task.completed:.0f}/{task.total:.0f}"
        words = [f"{task.description}{of}", f"{_clock(task.finished_time or task.elapsed)} elapsed"]
        if task.total and not task.finished:
            words.append(f"{_clock(task.time_remaining)} left")
        if figures := " ".join(str(task.fields.get("figures", "")).split()):
            words.append(figures)
        self.console.print(", ".join(words), markup=False, highlight=False, soft_wrap=True)


def _clock(seconds: float | None) -> str:
    return "-:--:--" if seconds is None else str(timedelta(seconds=round(seconds)))


def progress(console: Console, *more: ProgressColumn, **options: Any) -> Progress:
    """The progress of tasks, with more columns at its end; options are rich's. A task's field `figures` is said too."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    kind = Progress if console.is_terminal else Lines
    return kind(*columns, TextColumn("left"), TimeRemainingColumn(), *more, console=console, **options)


@contextmanager
def shown(console: Console, title: str) -> Iterator[Callable[[int, int], None]]:
    """The progress of one task, whose length is known when it first reports (done, in all)."""
    with progress(console) as bars:
        task = bars.add_task(title, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
