"""The metrics of a run: one JSON object a line in `metrics.jsonl`, and the same for TensorBoard."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from carv3d.errors import UserError
from carv3d.runs.storage import disk_errors, replace_file

log = logging.getLogger(__name__)

_VALUES = (int, float, str, type(None))  # and bool, which is an int


class MetricsLog:
    """Appends metrics, each line flushed at once.

    Args:
        path: the `metrics.jsonl`; made if it is not there.
        resume_step: drop lines of later steps first, so that a resumed run has each step once.
        tensorboard: folder of the TensorBoard log, or None for no such log.

    Raises:
        UserError: the disk is full, or may not be written to.
    """

    def __init__(self, path: Path, *, resume_step: int = 0, tensorboard: Path | None = None) -> None:
        self.path = path
        kept = [row for row in read_metrics(path) if row["step"] <= resume_step] if path.exists() else []
        if missing := resume_step - len({row["step"] for row in kept if row["step"] > 0}):
            log.warning(
                "%s has no figures of %d of the %d steps before the checkpoint: it was changed, or the machine broke "
                "down; the training goes on without them",
                path,
                missing,
                resume_step,
            )
        replace_file(path, "".join(f"{json.dumps(row)}\n" for row in kept).encode())
        with disk_errors(path):
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115
        self._tensorboard: Any = None
        if tensorboard is not None:
            from torch.utils.tensorboard import SummaryWriter  # slow to import, and not always needed

            with disk_errors(tensorboard):
                self._tensorboard = SummaryWriter(str(tensorboard), purge_step=resume_step + 1)

    def write(self, step: int, values: Mapping[str, float | str | bool | None]) -> None:
        """Append `{"step": step, **values}`. JSON has no nan or inf: they are written as null.

        Raises:
            UserError: the disk is full.
        """
        row: dict[str, Any] = {"step": step}
        for name, value in values.items():
            row[name] = None if isinstance(value, float) and not math.isfinite(value) else value
        with disk_errors(self.path):
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
            if self._tensorboard is not None:
                for name, value in values.items():
                    if isinstance(value, (int, float)):
                        self._tensorboard.add_scalar(name, value, step)

    def sync(self) -> None:
        """Wait until the disk has all lines: before a checkpoint, which must not be ahead of them."""
        with disk_errors(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close both logs."""
        with disk_errors(self.path):
            try:
                self._file.close()
            finally:
                if self._tensorboard is not None:
                    self._tensorboard.close()


def read_metrics(path: Path | str) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`, without an incomplete last line.

    Raises:
        UserError: no such file, or another line is broken.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from None
    rows = []
    for number, line in enumerate(lines[:-1], 1):  # after the last line end there is nothing or an incomplete line
        try:
            row = json.loads(line)
            if type(row["step"]) is not int or not all(isinstance(v, _VALUES) for v in row.values()):
                raise TypeError
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path}:{number} is no line of metrics; remove it or start the run anew") from None
        rows.append(row)
    return rows
