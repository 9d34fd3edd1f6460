"""What all suites share: runs to measure, times that take turns, results as JSON, and the tables of the docs' pages.

A suite is a module of this folder with a function `measure(bench)` that yields (name, Table). The tables of a suite
are kept in docs/results/<suite>.json, each with the command, machine and versions that made it.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib
import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from carv3d.errors import UserError
from carv3d.generation.generation import load_trainer
from carv3d.measurement import Observation, observe
from carv3d.runs import Run, replace_file, slug
from carv3d.runs.environment import cpu_name, device_name

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
RESULTS = ROOT / "docs" / "results"
_DOCS = ROOT / "docs"
PAGES = (_DOCS / "benchmarks.md", _DOCS / "explanation" / "reliability.md", _DOCS / "how-to" / "backends.md")
PACKAGES = ("torch", "diffusers", "numpy", "nerfacc")
_MARK = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end table -->)", re.DOTALL)


@dataclass
class Table:
    """Figures in rows.

    Attributes:
        columns: their heads.
        rows: a cell for each column: a text, a number, or None for nothing.
        made_by: command, machine, versions and date; filled in when it is written.
    """

    columns: list[str]
    rows: list[list[Any]] = field(default_factory=list)
    made_by: dict[str, Any] = field(default_factory=dict)

    def markdown(self) -> str:
        """The table as a page has it."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


@dataclass
class Bench:
    """What a suite is asked for.

    Attributes:
        suite: its name.
        words: `KEY=VALUE` for the configs, and what else the suite takes.
        device: where it runs.
        out: folder of runs and other large things.
        budget: seconds a measurement.
        seed: of all generators.
        quick: small sizes and few repeats, for a try.
        tables: names of the tables that are wanted; empty: all.
    """

    suite: str
    words: list[str]
    device: torch.device
    out: Path
    budget: float
    seed: int
    quick: bool
    tables: list[str]

    def wants(self, table: str) -> bool:
        """Whether a table is to be measured."""
        return not self.tables or table in self.tables

    def observe(self, run: Run, step: int) -> Observation:
        """The variances and costs of a run's checkpoint, see `carv3d.measurement.observe`."""
        if self.quick:
            return observe(load_trainer(run, step), renders=(1,), resamples=(1, 2), budget=90.0, precision=1.0)
        return observe(load_trainer(run, step), budget=self.budget, precision=0.02)

    def rng(self) -> torch.Generator:
        """A generator on the device, at the seed."""
        return torch.Generator(self.device).manual_seed(self.seed)

    def say(self, text: object) -> None:
        """Progress, on stderr."""
        print(text, file=sys.stderr, flush=True)

    def folder(self, name: str, words: Sequence[str]) -> Path:
        """Of runs in `out`: another one for other words, device, seed or size, so that no other run is taken for it."""
        asked = json.dumps([*words, str(self.device), self.seed, self.quick])
        return self.out / "runs" / f"{slug(name)}-{hashlib.sha256(asked.encode()).hexdigest()[:8]}"

    def train(self, name: str, prompt: str, steps: int, words: Sequence[str] = ()) -> Path:
        """A finished `carv3d generate` run with a checkpoint at each tenth; one that is there already is kept."""
        path = self.folder(f"{name}-{steps}", [prompt, *words])
        book = [f"training.steps={steps}", f"training.checkpoint_every={max(1, steps // 10)}", "mesh.formats=[]"]
        book += ["training.keep_checkpoints=100", "training.preview_every=0", "turntable.frames=2", "turntable.size=64"]
        command = [sys.executable, "-m", "carv3d", "generate"]
        if (path / "environment.json").exists():
            command += ["--resume", str(path)]
        else:
            book += [f"device={self.device}", f"seed={self.seed}", "threads=1"]
            command += [prompt, *words, *book, "--output", str(path)]  # the suite needs its own steps
        if not (path / "turntable.mp4").exists():
            self.say(f"training {path}")
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return path


def ratio(own: NDArray[np.float64], other: NDArray[np.float64]) -> str:
    """The ratio of two means over the same renders, with a 95 % bootstrap interval."""
    drawn = np.random.default_rng(0).integers(len(own), size=(1000, len(own)))
    low, high = np.quantile(own[drawn].mean(1) / other[drawn].mean(1), [0.025, 0.975])
    return f"{own.mean() / other.mean():.2f} ({low:.2f}-{high:.2f})"


def in_turns(ways: Mapping[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each way, which take turns; a first round warms up and is left out."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            started = now(device)
            way()
            if turn:
                seconds[name].append(now(device) - started)
    return seconds


def now(device: torch.device) -> float:
    """Seconds, when the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


# ------------------------------------------------------------------------------------------- suites and results


def suites() -> dict[str, str]:
    """The suites by name, with the first line of their docstring."""
    own = {path.stem: path for path in sorted(FOLDER.glob("*.py")) if not path.stem.startswith("__")}
    return {name: path.read_text().split('"""')[1].splitlines()[0] for name, path in own.items() if name != "harness"}


def run(bench: Bench, results: Path) -> dict[str, Table]:
    """Measure a suite; each table is written as soon as it is there.

    Raises:
        UserError: an unknown suite, or a table that it does not have.
    """
    if bench.suite not in suites():
        raise UserError(f"no suite {bench.suite!r}: choose one of {', '.join(suites())}, or docs")
    measure: Callable[[Bench], Iterable[tuple[str, Table]]]
    measure = importlib.import_module(f"scripts.benchmarks.{bench.suite}").measure
    found: dict[str, Table] = {}
    for name, table in measure(bench):
        table.made_by = made_by("scripts.benchmarks", bench.device, quick=bench.quick)
        found[name] = table
        write(results / f"{bench.suite}.json", {name: table})
        bench.say(f"\n{name}\n\n{table.markdown()}")
    if missing := [name for name in bench.tables if name not in found]:
        raise UserError(f"the suite {bench.suite} has no table {missing[0]!r}, or not on this device")
    return found


def made_by(module: str, device: torch.device, *, quick: bool) -> dict[str, Any]:
    """Command, machine, versions and date.

    Args:
        module: that is run, with the words of this process.
        device: that was measured.
        quick: whether it was a try.
    """
    machine = f"{cpu_name()}, {torch.get_num_threads()} threads"
    return {
        "command": shlex.join(["python", "-m", module, *sys.argv[1:]]),
        "machine": device_name(device) if device.type == "cuda" else machine,
        "versions": {package: version(package) for package in PACKAGES},
        "date": datetime.date.today().isoformat(),
        "quick": quick,
    }


def write(path: Path, tables: Mapping[str, Table]) -> None:
    """Add tables to a results file, in place of those of the same name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = read(path) if path.exists() else {}
    text = {"suite": path.stem, "tables": {name: asdict(table) for name, table in (kept | dict(tables)).items()}}
    replace_file(path, (json.dumps(text, indent=1, ensure_ascii=False) + "\n").encode())


def read(path: Path) -> dict[str, Table]:
    """The tables of a results file by name."""
    return {name: Table(**table) for name, table in json.loads(path.read_text(encoding="utf-8"))["tables"].items()}


def every_table(results: Path = RESULTS) -> dict[str, Table]:
    """All tables as `<suite>/<name>`."""
    return {
        f"{path.stem}/{name}": table for path in sorted(results.glob("*.json")) for name, table in read(path).items()
    }


def with_tables(page: str, tables: Mapping[str, Table]) -> str:
    """A page whose marked tables are those of the results.

    Raises:
        UserError: the page marks a table that there is not.
    """

    def table(match: re.Match[str]) -> str:
        if match[2] not in tables:
            raise UserError(f"the page marks the table {match[2]!r}, which no file in docs/results has")
        return f"{match[1]}\n{tables[match[2]].markdown()}\n{match[3]}"

    return _MARK.sub(table, page)


def marked(page: str) -> Iterator[str]:
    """The names of a page's tables."""
    return (match[2] for match in _MARK.finditer(page))
