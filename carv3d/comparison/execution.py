"""The runs of a comparison: ordinary runs, each made by `carv3d generate` in a process of its own."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from carv3d.comparison.plan import Method, Plan, differing_key
from carv3d.errors import UserError
from carv3d.runs import Run, slug
from carv3d.runs.locking import wait_until_free
from carv3d.system.parent import STOPS_WITH_PARENT
from carv3d.system.progress import progress

_GRACE = 30.0  # seconds that a stopped run may take to save a checkpoint


@dataclass(frozen=True)
class Job:
    """One run of the comparison."""

    method: Method
    prompt: str
    seed: int
    path: Path

    @property
    def finished(self) -> bool:
        """Whether the run is finished; the turntable is its last result."""
        return (self.path / "turntable.mp4").is_file()


def folder_name(prompt: str, seed: int) -> str:
    """The name of a run's folder in a comparison; different prompts have different names."""
    name = slug(prompt)
    if (
        name.replace("-", " ") != prompt.lower()
    ):  # the slug is shorter than the prompt: another prompt may have the same one
        name += "-" + hashlib.sha256(prompt.casefold().encode()).hexdigest()[:8]
    return f"{name}-seed{seed}"


def jobs_of(plan: Plan, folder: Path) -> list[Job]:
    """All runs of the plan. The methods take turns, so that a stopped comparison has the same prompts for all
    methods.
    """
    return [
        Job(method, prompt, seed, folder / method.name / folder_name(prompt, seed))
        for seed in range(plan.seeds)
        for prompt in plan.prompts
        for method in plan.methods
    ]


def check_runs(jobs: Sequence[Job], plan: Plan) -> None:
    """Refuse existing runs that cannot be compared.

    Raises:
        UserError: a run of another config or of another device.
    """
    for job in jobs:
        if not (job.path / "environment.json").exists():
            continue
        run = Run.open(job.path)
        expected = replace(job.method.config, prompt=job.prompt, seed=job.seed)
        difference = differing_key(run.config, expected)
        for key in ("prompt", "seed"):
            if getattr(run.config, key) != getattr(expected, key):
                difference = f"{key}: {getattr(run.config, key)} and {getattr(expected, key)}"
        if difference:
            raise UserError(
                f"{job.path} is a run of another config than {job.method.name} ({difference}); "
                "move it away, or give another --output"
            )
        made_on = run.environment.get("device", "a device that is not known")
        if made_on != plan.device_name:
            raise UserError(
                f"{job.path} was made on {made_on}, the comparison on {plan.device_name}: runs of different devices "
                "are not compared; move it away, or give another --output"
            )


def execute(jobs: Sequence[Job], plan: Plan, folder: Path, workers: int, console: Console) -> list[Job]:
    """Make the missing runs, and resume the unfinished ones.

    Args:
        jobs: see `jobs_of`; finished ones are kept.
        plan: the plan of the runs.
        folder: of the comparison.
        workers: runs at a time.
        console: where the progress bar goes.

    Returns:
        The runs that were made or resumed.

    Raises:
        UserError: a run failed; the message has the last lines that it printed.
        KeyboardInterrupt: after all runs have been stopped.
    """
    waiting = [job for job in jobs if not job.finished]
    if not waiting:
        return []
    children = _Children(plan.threads)
    pool = ThreadPoolExecutor(workers)
    with _interruptible(), progress(console, speed_estimate_period=3600) as bar:
        task = bar.add_task("runs", total=len(jobs), completed=len(jobs) - len(waiting))
        try:
            for future in as_completed([pool.submit(_run, job, folder, children) for job in waiting]):
                future.result()
                bar.advance(task)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            children.stop()
            pool.shutdown()
    return waiting


def _run(job: Job, folder: Path, children: _Children) -> None:
    wait_until_free(job.path, _GRACE)  # a run of a comparison that was killed is ending
    words = ["generate", "--resume", str(job.path)]
    if not (job.path / "environment.json").exists():
        config = folder / f"{job.method.name}.yaml"
        # In quotes, as YAML, so that the prompt is taken literally.
        prompt = f"prompt={json.dumps(job.prompt, ensure_ascii=False)}"
        words = ["generate", str(config), prompt, f"seed={job.seed}", "--output", str(job.path)]
    code, said = children.run([sys.executable, "-m", "carv3d", *words])
    if code:
        last = next((line.strip() for line in reversed(said.splitlines()) if line.strip()), f"exit code {code}")
        raise UserError(f"the run {job.path} failed: {last.removeprefix('error: ')}")


class _Children:
    """Processes of runs, which can be stopped together."""

    def __init__(self, threads: int) -> None:
        self._environment = os.environ | {"OMP_NUM_THREADS": str(threads), STOPS_WITH_PARENT: "1"}
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = False

    def run(self, command: list[str]) -> tuple[int, str]:
        """Exit code and stderr of a command."""
        with self._lock:
            if self._stopped:
                return 130, "stopped"
            # In a session of its own, the process gets Ctrl-C only once, from `stop`, and saves a checkpoint.
            child = subprocess.Popen(
                command,
                env=self._environment,
                stdin=subprocess.PIPE,  # its end tells the child that this process has ended
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,
            )
            self._running.add(child)
        assert child.stderr is not None
        said = child.stderr.read()  # not `communicate`, which closes stdin
        child.wait()
        child.stderr.close()
        assert child.stdin is not None
        child.stdin.close()
        with self._lock:
            self._running.discard(child)
        return child.returncode, said

    def stop(self) -> None:
        """Ask all processes to save and end, wait for them, and kill those that do not end."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for child in running:
            child.terminate()
        for child in running:
            try:
                child.wait(_GRACE)
            except subprocess.TimeoutExpired:
                child.kill()


@contextmanager
def _interruptible() -> Iterator[None]:
    """Turns the signals that end a process into KeyboardInterrupt, so that no run is left behind."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    main = threading.current_thread() is threading.main_thread()  # only there can signals be handled
    numbers = (signal.SIGTERM, signal.SIGHUP) if main else ()
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
