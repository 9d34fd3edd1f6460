"""One run's folder.

outputs/<config>/<prompt>-<n>/
  config.yaml  environment.json  metrics.jsonl  log.txt  tensorboard/
  checkpoints/step_001000/{scene.safetensors, state.safetensors, state.json}
  previews/  mesh/  turntable.mp4

`RunFolder` is common to the runs of all pipelines; `Run` is a run of text to 3-D.
"""

from __future__ import annotations

import json
import logging
import re
import shlex
import shutil
import sys
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from carv3d.config import Config, load, to_yaml
from carv3d.config.paths import user_path
from carv3d.errors import UserError
from carv3d.runs.checkpoints import Checkpoint, Checkpoints, refuse_pickle
from carv3d.runs.environment import environment
from carv3d.runs.locking import FolderLock, refuse_special_files
from carv3d.runs.metrics import MetricsLog
from carv3d.runs.storage import disk_errors, replace_file

if TYPE_CHECKING:
    from typing_extensions import Self

_C = TypeVar("_C")

_BEFORE_THE_START = {".lock", "log.txt", "config.yaml", "checkpoints", "previews"}
"""What is in a run's folder before `environment.json`, which marks it as a run."""

_SLUG_LENGTH = 48  # characters; four bytes each at most, which a file name of 255 bytes holds


class RunFolder(ABC, Generic[_C]):
    """A run's folder. Make one with `create` or `open`; close it, or use it in a `with`.

    Only one process at a time may write to a run. It holds a lock, which the system releases when the process ends.

    Attributes:
        kind: the dataclass of its config.
        verb: the command that makes such runs.
        trained: the name of the trained tensors in checkpoints.
    """

    kind: ClassVar[type[Any]]
    verb: ClassVar[str]
    trained: ClassVar[str]

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = Checkpoints(path / "checkpoints", self.trained)
        self._lock: FolderLock | None = None
        self._log: _LogFile | None = None
        self._metrics: MetricsLog | None = None

    @classmethod
    def create(
        cls,
        config: _C,
        config_name: str,
        command: str | Sequence[str],
        *,
        folder: Path | str | None = None,
        device: torch.device | None = None,
    ) -> Self:
        """Make a run's folder and take its lock.

        Args:
            config: written to `config.yaml`.
            config_name: first part of the path, such as "shapes".
            command: the command line, for `environment.json`.
            folder: the run's folder; default: `<output_dir>/<config_name>/<name>-<n>` with the next free n.
            device: whose name goes into `environment.json`.

        Raises:
            UserError: `folder` exists and is not empty, or the disk may not be written to or is full.
        """
        if folder is None:
            section: Any = config
            path = _next_free(user_path(section.output_dir) / slug(config_name), slug(cls.name_of(config)))
        else:
            path = user_path(folder)
            with disk_errors(path):
                if path.exists() and not (path.is_dir() and _never_began(path)):
                    raise UserError(f"{path} exists and is not empty; give another folder or resume that run")
                path.mkdir(parents=True, exist_ok=True)
        run = cls(path)
        try:
            run._begin_writing()
            if (path / "environment.json").exists():  # of a process that was quicker
                run.close()
                raise UserError(f"{path} is a run; give another folder or resume that run")
            with disk_errors(path):
                for name in (run.checkpoints.folder, run.previews):
                    name.mkdir(exist_ok=True)
            run.save_config(config)
            line = command if isinstance(command, str) else shlex.join(command)
            made_with = json.dumps({"verb": cls.verb, **environment(line, device)}, indent=1) + "\n"
            # Written last, because it marks the folder as a run.
            replace_file(path / "environment.json", made_with.encode())
        except BaseException:
            mine = run._lock is not None
            run.close()
            if mine:  # the folder was empty before; without the lock it may belong to another process
                shutil.rmtree(path, ignore_errors=True)
            raise
        return run

    @classmethod
    def open(cls, path: Path | str, *, write: bool = False) -> Self:
        """An existing run, to read from, or with `write` to go on with it.

        Raises:
            UserError: not a run, or another process is writing to it.
        """
        path = user_path(path)
        refuse_pickle(path)
        if not path.is_dir():
            raise UserError(f"no run {path}: it is {'a file' if path.exists() else 'not there'}")
        if not cls._is_run(path):
            if (path / "config.yaml").is_file() and _never_began(path):
                raise UserError(
                    f"{path} has nothing to go on with, because it was stopped before its start: give the command "
                    f"that made it again, with --output {shlex.quote(str(path))}"
                )
            parent = next((p for p in path.resolve().parents if cls._is_run(p)), None)
            hint = f"give its run, {parent}" if parent else f"give a folder that `carv3d {cls.verb}` made"
            raise UserError(f"{path} is not a run; {hint}")
        refuse_special_files(path)
        run = cls(path)
        if (verb := run.environment.get("verb", cls.verb)) != cls.verb:
            raise UserError(f"{path} is a run of `carv3d {verb}`; give a folder that `carv3d {cls.verb}` made")
        if write:
            try:
                run._begin_writing()
                with disk_errors(path):
                    run.checkpoints.clean()
            except BaseException:
                run.close()
                raise
        return run

    @staticmethod
    def _is_run(path: Path) -> bool:
        return all((path / name).is_file() for name in ("config.yaml", "environment.json"))

    @classmethod
    @abstractmethod
    def name_of(cls, config: _C) -> str:
        """The text that a run's folder is named after."""

    @cached_property
    def config(self) -> _C:
        """The config as it was run."""
        found: _C = load(self.path / "config.yaml", of=self.kind)
        return found

    @property
    def previews(self) -> Path:
        """Folder of the pictures made during training."""
        return self.path / "previews"

    @property
    def metrics_path(self) -> Path:
        """The metrics; see `read_metrics`."""
        return self.path / "metrics.jsonl"

    @property
    def environment(self) -> dict[str, Any]:
        """What the run was made with.

        Raises:
            UserError: the file is damaged.
        """
        path = self.path / "environment.json"
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            raise UserError(f"{path} is damaged: get it from a copy, or make the run again") from None

    def save_config(self, config: _C) -> None:
        """Write `config.yaml`, for instance when a resumed run has been given more steps."""
        replace_file(self.path / "config.yaml", to_yaml(config).encode())
        self.__dict__.pop("config", None)

    def save_checkpoint(
        self, step: int, trained: Mapping[str, Tensor], state: Mapping[str, Tensor], info: Mapping[str, Any]
    ) -> Path:
        """See `Checkpoints.save`; keeps `training.keep_checkpoints` of them."""
        config: Any = self.config
        keep = config.training.keep_checkpoints
        return self.checkpoints.save(step, trained, state, info, keep=keep)

    def load_checkpoint(self, step: int | None = None) -> Checkpoint:
        """See `Checkpoints.load`."""
        return self.checkpoints.load(step)

    def metrics(self, *, resume_step: int = 0) -> MetricsLog:
        """The metrics to append to, lines after `resume_step` dropped; closed with the run."""
        if self._metrics is None:
            tensorboard = self.path / "tensorboard"
            self._metrics = MetricsLog(self.metrics_path, resume_step=resume_step, tensorboard=tensorboard)
        return self._metrics

    def close(self) -> None:
        """Close the logs and release the lock."""
        metrics, self._metrics = self._metrics, None
        handler, self._log = self._log, None
        lock, self._lock = self._lock, None
        try:
            if metrics is not None:
                metrics.close()
        finally:
            if handler is not None:
                logging.getLogger("carv3d").removeHandler(handler)
                handler.close()
            if lock is not None:
                lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin_writing(self) -> None:
        """Take the lock and send the program's log to `log.txt` too."""
        lock = FolderLock(self.path)
        lock.acquire()
        self._lock = lock
        with disk_errors(self.path):
            self._log = _LogFile(self.path / "log.txt", encoding="utf-8")
        self._log.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%F %T"))
        logger = logging.getLogger("carv3d")
        for earlier in [handler for handler in logger.handlers if isinstance(handler, MemoryHandler)]:
            earlier.setTarget(self._log)  # what was said before there was a folder
            earlier.flush()
            logger.removeHandler(earlier)
        logger.addHandler(self._log)
        logger.setLevel(logging.INFO)


class Run(RunFolder[Config]):
    """A run of text to 3-D."""

    kind = Config
    verb = "generate"
    trained = "scene"

    @classmethod
    def name_of(cls, config: Config) -> str:
        """The prompt."""
        return config.prompt

    @property
    def mesh(self) -> Path:
        """Folder of the exported mesh."""
        return self.path / "mesh"

    @property
    def turntable(self) -> Path:
        """The video."""
        return self.path / "turntable.mp4"


class _LogFile(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Print no traceback for each line on a full disk; writing the results reports it."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def slug(text: str) -> str:
    """A text as a file name: lower-case letters and digits of any script, joined by hyphens."""
    words = re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).lower())
    return "-".join(words)[:_SLUG_LENGTH].strip("-") or "run"


def _never_began(path: Path) -> bool:
    """Whether a folder is empty, or has only what a run that was killed before its start leaves."""
    names = {each.name for each in path.iterdir() if not re.fullmatch(r"\..*\.tmp", each.name)}
    folders = [path / name for name in ("checkpoints", "previews") if (path / name).is_dir()]
    return names <= _BEFORE_THE_START and not any(any(folder.iterdir()) for folder in folders)


def _next_free(parent: Path, name: str) -> Path:
    with disk_errors(parent):
        parent.mkdir(parents=True, exist_ok=True)
        taken = (re.fullmatch(re.escape(name) + r"-(\d+)", path.name) for path in parent.iterdir())
        number = max((int(match[1]) for match in taken if match), default=0) + 1
        while True:
            path = parent / f"{name}-{number}"
            try:
                path.mkdir()  # fails if another process has just made it
                return path
            except FileExistsError:
                number += 1
