"""Runs command lines in forked children of a process that has imported everything, so that each takes no ten seconds.

A child is as a fresh process is: it has a session, signal handlers, standard streams and home of its own, and torch
has computed nothing in its parent.
"""

from __future__ import annotations

import atexit
import importlib
import os
import pkgutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from scripts.campaign.disk_faults import DiskFault

HANG = 60.0
"""Seconds after which a command line counts as one that hangs."""

# Bytes of address space: a command that fills the memory gets an error, and no other process suffers.
_MEMORY = 6 * 2**30
_LAZY = (
    "PIL.PngImagePlugin",
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.models.unets.unet_2d_condition",
    "diffusers.pipelines.stable_diffusion",
    "imageio.plugins.ffmpeg",
    "imageio.plugins.pillow",
    "imageio_ffmpeg",
    "matplotlib.figure",
    "rich.progress",
    "scipy.ndimage",
    "scipy.spatial",
    "skimage.measure",
    "torch._dynamo",
    "torch.utils.tensorboard",
    "transformers.models.clip.modeling_clip",
    "transformers.models.clip.tokenization_clip",
    "trimesh",
)
"""What verbs import when they need it."""


@dataclass(frozen=True)
class Box:
    """The folders of a trial. A command line writes into `work`, its working folder, and nowhere else.

    Attributes:
        path: of the trial.
    """

    path: Path

    @property
    def work(self) -> Path:
        """The working folder."""
        return self.path / "work"

    @property
    def temporary(self) -> Path:
        """The system's temporary folder."""
        return self.path / "tmp"

    @property
    def home(self) -> Path:
        """The home folder, with the cache."""
        return self.path / "home"

    def make(self) -> Box:
        """Make the folders."""
        for folder in (self.work, self.temporary, self.home):
            folder.mkdir(parents=True, exist_ok=True)
        return self


@dataclass(frozen=True)
class Signal:
    """A signal that a command line gets.

    Attributes:
        number: of the signal.
        after: seconds.
    """

    number: int
    after: float


@dataclass(frozen=True)
class Ended:
    """How a command line ended.

    Attributes:
        code: the exit code; negative: the number of the signal that ended it.
        said: what it printed to stdout and stderr.
        seconds: how long it took.
        hung: it was ended after `HANG` seconds.
    """

    code: int
    said: str
    seconds: float
    hung: bool

    @property
    def unexplained(self) -> bool:
        """Whether it printed a traceback, or kept one in a file."""
        return "Traceback (most recent call last)" in self.said or "carv3d failed (" in self.said

    @property
    def errors(self) -> list[str]:
        """The lines of errors."""
        return [line for line in self.said.replace("\r", "\n").splitlines() if line.startswith(("error:", "Usage:"))]


def preload() -> None:
    """Import all of carv3d, and what its verbs import."""
    import carv3d

    names = [
        module.name for module in pkgutil.walk_packages(carv3d.__path__, "carv3d.") if "__main__" not in module.name
    ]
    for name in (*names, *_LAZY):
        try:
            importlib.import_module(name)
        except Exception as error:  # of an extra that is not installed, for instance
            print(f"not imported: {name} ({' '.join(str(error).split())[:80]})", file=sys.stderr)
    import torch

    torch.set_num_threads(1)


def run(
    words: Sequence[str | Path], box: Box, disturbance: DiskFault | Signal | None = None, *, patience: float = HANG
) -> Ended:
    """Run `carv3d WORDS` in a box, and disturb it.

    Args:
        words: the command line.
        box: its folders exist.
        disturbance: a fault of its disk calls, or a signal.
        patience: seconds, after which it is ended.
    """
    with tempfile.TemporaryFile() as output:
        started = time.monotonic()
        child = os.fork()
        if not child:
            _child([str(word) for word in words], box, output.fileno(), disturbance)
        status, hung = _wait(child, disturbance if isinstance(disturbance, Signal) else None, patience)
        seconds = time.monotonic() - started
        output.seek(0)
        said = output.read().decode(errors="replace")
    return Ended(os.waitstatus_to_exitcode(status), said, seconds, hung)


def _wait(child: int, due: Signal | None, patience: float) -> tuple[int, bool]:
    """The status of a child that has ended, or was ended after `patience` seconds."""
    started = time.monotonic()
    try:
        while not (ended := os.waitpid(child, os.WNOHANG))[0]:
            seconds = time.monotonic() - started
            if due is not None and seconds >= due.after:
                os.kill(child, due.number)
                due = None
            if seconds > patience:
                _kill(child)
                return os.waitpid(child, 0)[1], True
            time.sleep(0.003)
        return ended[1], False
    except BaseException:
        _kill(child)
        raise


def _kill(child: int) -> None:
    """End a child and its children; it has no session of its own in its first moment."""
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)


def _child(words: list[str], box: Box, output: int, disturbance: object) -> None:
    """The child's part; never returns."""
    code = 70
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (output, 1), (output, 2)):
            os.dup2(source, target)
        sys.stdout = open(1, "w", closefd=False, errors="backslashreplace")  # noqa: SIM115
        sys.stderr = open(2, "w", closefd=False, errors="backslashreplace", buffering=1)  # noqa: SIM115
        os.chdir(box.work)
        os.environ |= {"HOME": str(box.home), "TMPDIR": str(box.temporary), "XDG_CACHE_HOME": str(box.home / ".cache")}
        tempfile.tempdir = None
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        sys.argv = ["carv3d", *words]
        if isinstance(disturbance, DiskFault):
            disturbance.arm()
        code = _main()
    finally:
        os._exit(code & 255)


def _main() -> int:
    """The exit code of the command line; what a fresh interpreter would print at its end is printed."""
    from carv3d.cli import main

    code = 1
    try:
        main()
        code = 0
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
        else:
            code = ended.code or 0
    except BaseException:
        traceback.print_exc()
    try:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
    return code
