"""The log of figures: readable while it is written, and mended after a kill."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest

from carv3d.config import Config
from carv3d.errors import UserError
from carv3d.runs import (
    MetricsLog,
    Run,
    read_metrics,
    run,
)
from tests.run_folders import small_config

config = pytest.fixture(small_config)


def steps(path: Path) -> list[int]:
    return [row["step"] for row in read_metrics(path)]


def test_metrics_can_be_read_while_they_are_written(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    log = MetricsLog(file)
    log.write(1, {"loss": 0.5, "note": "x", "odd": float("nan")})
    assert read_metrics(file) == [{"step": 1, "loss": 0.5, "note": "x", "odd": None}]
    log.close()


def test_resume_drops_what_came_after(tmp_path: Path) -> None:
    """The log of a resumed run has every step once."""
    file = tmp_path / "metrics.jsonl"
    log = MetricsLog(file)
    for step in range(1, 8):
        log.write(step, {"loss": 1.0 / step})
    log.close()
    log = MetricsLog(file, resume_step=4)
    log.write(5, {"loss": 9.0})
    log.close()
    assert steps(file) == [1, 2, 3, 4, 5]
    assert read_metrics(file)[-1]["loss"] == 9.0


def test_half_a_line_at_the_end_is_left_out_and_not_written_on(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n{"step": 2, "lo')
    assert steps(file) == [1]
    log = MetricsLog(file, resume_step=10)
    log.write(2, {})
    log.close()
    assert steps(file) == [1, 2]


@pytest.mark.parametrize("line", ["garbage", "{}", "[]", '{"step": null}', "\x00"])
def test_broken_line_in_the_middle_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(UserError, match=r"metrics.jsonl:2 "):
        read_metrics(file)


def test_full_disk_while_logging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/dev/full is a disk without space."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log._file.close()
    log._file = open("/dev/full", "a")  # noqa: SIM115
    with pytest.raises(UserError, match="the disk is full"):
        log.write(1, {"loss": 1.0})
    with pytest.raises(UserError, match="the disk is full"):
        log.close()


def test_full_disk_does_not_flood_the_terminal(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    """Logging would print a traceback for every line that it cannot write."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    handler = run._LogFile("/dev/full")
    handler.handle(logging.LogRecord("x", logging.INFO, "", 0, "hello", None, None))
    assert capsys.readouterr().err == ""
    handler.handle(logging.LogRecord("x", logging.INFO, "", 0, "%d", ("a bug",), None))
    assert "TypeError" in capsys.readouterr().err
    handler.stream.close = lambda: None  # type: ignore[method-assign]
    handler.stream = None  # type: ignore[assignment]


def test_tensorboard_has_the_same_numbers_once(config: Config) -> None:
    """Also after a resume."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Run.create(config, "shapes", "") as made:
        for step in (1, 2, 3):
            made.metrics().write(step, {"loss": float(step), "note": "text"})
    time.sleep(1.1)  # TensorBoard reads its files in the order of their names, which hold whole seconds
    with Run.open(made.path, write=True) as again:
        again.metrics(resume_step=2).write(3, {"loss": 30.0})
    events = EventAccumulator(str(made.path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert steps(made.metrics_path) == [1, 2, 3]


def test_lost_figures_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A log that is shorter than the checkpoint was changed or lost: the run goes on, and says so."""
    file = tmp_path / "metrics.jsonl"
    for kept, missing in ((range(1, 5), 1), (range(3, 6), 2), ((), 5)):
        file.write_text("".join(f'{{"step": {step}}}\n' for step in kept))
        caplog.clear()
        MetricsLog(file, resume_step=5).close()
        assert f"has no figures of {missing} of the 5 steps" in caplog.text
    file.write_text("".join(f'{{"step": {step}}}\n' for step in range(1, 9)))
    caplog.clear()
    MetricsLog(file, resume_step=5).close()
    assert not caplog.messages


@pytest.mark.parametrize(
    "line", ['{"step": "3"}', '{"step": 1.5}', '{"step": true}', '{"step": 1, "x": [1]}', "[]", "7"]
)
def test_lines_of_another_type_are_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text(f'{{"step": 1}}\n{line}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2 is no line of metrics"):
        read_metrics(file)
