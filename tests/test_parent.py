"""Processes that stop with the one that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from carv3d.system.parent import STOPS_WITH_PARENT

CODE = (
    "from carv3d.system.parent import stop_with_parent as s; s(); print('on', flush=True); import time; time.sleep({})"
)


def started(seconds: float, **environment: str) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", CODE.format(seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )
    assert child.stdout is not None and child.stdout.readline() == "on\n"
    return child


def test_the_end_of_the_pipe_is_a_sigterm() -> None:
    """The system closes the pipe of a parent that was killed: `compare` leaves no run behind."""
    child = started(60, **{STOPS_WITH_PARENT: "1"})
    assert child.poll() is None and child.stdin is not None
    child.stdin.close()
    assert child.wait(20) == -signal.SIGTERM


def test_a_command_in_a_pipe_goes_on() -> None:
    """Where nobody asked for it: `echo | carv3d generate ...`."""
    child = started(0.3)
    assert child.stdin is not None
    child.stdin.close()
    assert child.wait(20) == 0
