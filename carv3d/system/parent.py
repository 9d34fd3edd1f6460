"""A process that stops with the one that started it, however that ends."""

from __future__ import annotations

import os
import signal
import sys
import threading

STOPS_WITH_PARENT = "CARV3D_STOPS_WITH_PARENT"
"""The environment variable of a process whose standard input is a pipe from its parent."""


def stop_with_parent() -> None:
    """If the variable is set, send this process SIGTERM when its standard input ends: the system closes a killed
    process's pipes. A run then saves a checkpoint and ends.
    """
    if os.environ.pop(STOPS_WITH_PARENT, None) is None:
        return

    def watch() -> None:
        try:
            while os.read(sys.stdin.fileno(), 4096):
                pass
        except (OSError, ValueError):  # there is no standard input
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True, name="carv3d-parent").start()
