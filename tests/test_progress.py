"""Progress where the output is no terminal: lines in a log, in time."""

from __future__ import annotations

import io
import re
import time

import pytest
from rich.console import Console
from rich.progress import Progress

from carv3d.system import progress as module
from carv3d.system.progress import Lines, progress, shown


@pytest.fixture
def console(monkeypatch: pytest.MonkeyPatch) -> Console:
    """Writes to a string; lines come every fifth of a second."""
    monkeypatch.setattr(module, "SECONDS", 0.2)
    return Console(file=io.StringIO(), width=40)


def said(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_a_terminal_has_bars() -> None:
    assert type(progress(Console(file=io.StringIO(), force_terminal=True))) is Progress


def test_lines_say_step_time_left_and_figures(console: Console) -> None:
    """While the task goes on, whether it reports or not; each is one line, however long."""
    with progress(console) as bars:
        assert isinstance(bars, Lines)
        task = bars.add_task("training", total=100, figures="")
        bars.add_task("hidden", total=5, visible=False)
        for step in range(1, 13):
            bars.update(task, completed=step, figures="grad 1.25  " + "x" * 60)
            time.sleep(0.02)
        assert len(said(console)) == 1
        time.sleep(0.3)  # a long step
        assert len(said(console)) == 2
        bars.update(task, completed=100)
    lines = said(console)
    assert re.fullmatch(r"training \d+/100, 0:00:00 elapsed, 0:00:0\d left, grad 1.25 x{60}", lines[0])
    assert lines[-1].startswith("training 100/100, 0:00:01 elapsed, grad") and len(lines) == 3


def test_a_long_task_is_counted_in_whole_numbers(console: Console) -> None:
    with progress(console) as bars:
        bars.update(bars.add_task("training", total=2_000_000), completed=1_234_567)
    assert said(console)[0].startswith("training 1234567/2000000, ")


def test_a_finished_task_is_said_once(console: Console) -> None:
    with progress(console) as bars:
        task = bars.add_task("mesh", total=1)
        bars.update(task, completed=1)
        time.sleep(0.5)
    assert len(said(console)) == 1


def test_a_task_without_a_length_has_no_last_line(console: Console) -> None:
    """So that the error of a command that fails at once is its only line."""
    with pytest.raises(ValueError), shown(console, "meshing"):
        raise ValueError
    assert said(console) == []
    with shown(console, "meshing") as watch:
        time.sleep(0.3)
        watch(3, 4)
    assert said(console) == ["meshing, 0:00:00 elapsed", "meshing 3/4, 0:00:00 elapsed, -:--:-- left"]
