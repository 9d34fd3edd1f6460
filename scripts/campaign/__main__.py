"""`python -m scripts.campaign kills faults fuzz files`: disturbs the command line, and says what it did not take.

    kills   a command is killed at any disk call or moment, and goes on: it leaves what an undisturbed one does
    faults  a disk call fails, or a file of a run is damaged: the command explains it or mends it
    fuzz    values, options, configs and prompts that no command takes: one line, exit code 2, nothing is written
    files   point clouds, pictures and prompt libraries as other programs and people make them

A trial is a function of the seed, the kind and its number, so that a failure is repeated by its line.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from carv3d.errors import UserError
from scripts.campaign import disk_faults, faults, files, fuzz, kills
from scripts.campaign.baseline import Baselines
from scripts.campaign.commands import COMMANDS, SLOW, Command
from scripts.campaign.server import Box, preload
from scripts.campaign.trial import PROBLEMS, Trial, generator

TRIALS = {"kills": 200, "faults": 130, "fuzz": 500, "files": 60}
"""How many trials of each kind are a whole campaign."""

_WORK = "CARV3D_CAMPAIGN"  # the environment variable that tells the process in which the library is loaded its folder
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Plan:
    """One trial to come: a function of the seed, the kind and the number.

    Attributes:
        seed: of the campaign.
        kind: kills, faults, fuzz or files.
        number: of the trial, from 0; faults take turns.
        quick: without the commands that take long.
        compiled: whether disk calls can be counted and fail.
    """

    seed: int
    kind: str
    number: int
    quick: bool
    compiled: bool

    @property
    def damages(self) -> bool:
        """Whether a file is damaged, and no disk call fails."""
        return self.kind == "faults" and (self.number % 2 == 1 or not self.compiled)

    @property
    def command(self) -> Command | None:
        """What is disturbed."""
        if self.kind not in ("kills", "faults"):
            return None
        known = [each for each in (faults.READERS if self.damages else COMMANDS) if not self.quick or each not in SLOW]
        rng = generator(self.seed, self.kind, self.number, "command")
        return rng.choices(known, [command.weight for command in known])[0]

    def run(self, box: Box, baselines: Baselines) -> Trial:
        """Do it."""
        rng = generator(self.seed, self.kind, self.number)
        command = self.command
        if command is None:
            return {"fuzz": fuzz.trial, "files": files.trial}[self.kind](rng, box, baselines)
        way: Callable[..., Trial] = kills.trial
        if self.kind == "faults":
            way = faults.damaged if self.damages else faults.disk
        return way(command, rng, box, baselines)


_BASELINES: Baselines  # of the process that makes the workers, who inherit it
_FOLDER: Path


def _one(plan: Plan) -> Trial:
    """A worker's part: the trial of a plan in a box of its own, which is removed if all is right."""
    box = Box(_FOLDER / f"{plan.kind}-{plan.number}")
    found = plan.run(box, _BASELINES)
    found.again = f"python -m scripts.campaign {plan.kind} --seed {plan.seed} --only {plan.number}"
    found.again += " --quick" if plan.quick else ""
    os.chdir(_FOLDER)
    if found.right:
        shutil.rmtree(box.path, ignore_errors=True)
    return found


def _respawn(work: Path) -> None:
    """Start anew with the library that lets disk calls fail, and with settings that every child is to have."""
    if work.exists() and any(work.iterdir()):
        raise UserError(f"{work} is not empty: name a new folder")
    work.mkdir(parents=True, exist_ok=True)
    more = {_WORK: str(work), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
    more |= {"COLUMNS": "200", "NUMBA_CACHE_DIR": str(work / "numba"), "TOKENIZERS_PARALLELISM": "false"}
    if disk_faults.compiler():
        more["LD_PRELOAD"] = str(disk_faults.build(work))
    os.execve(sys.executable, [sys.executable, "-m", "scripts.campaign", *sys.argv[1:]], os.environ | more)


def run(plans: Sequence[Plan], work: Path, jobs: int) -> list[Trial]:
    """Do the trials, on several processes; what goes wrong is printed and kept in `work`/failures.jsonl."""
    from rich.progress import track

    global _BASELINES, _FOLDER
    _FOLDER = work
    preload()
    _BASELINES = Baselines(work, faults=any(plan.compiled for plan in plans))
    commands = [plan.command for plan in plans]
    for command in dict.fromkeys(filter(None, commands)):
        _ = _BASELINES[command]
        _BASELINES.provide([faults.subject(command)])
    if None in commands:
        _BASELINES.provide(["run", "distilled"])
    found = []
    with multiprocessing.get_context("fork").Pool(jobs) as pool, open(work / "failures.jsonl", "a") as wrong:
        for trial in track(pool.imap_unordered(_one, plans), "trials", len(plans), transient=True):
            found.append(trial)
            if not trial.right:
                wrong.write(json.dumps(trial.as_json(), ensure_ascii=False) + "\n")
                wrong.flush()
                print(f"{trial.what}\n  {trial.again}\n  {trial.problems}"[:1500], file=sys.stderr, flush=True)
    return found


def rows(found: Sequence[Trial]) -> list[list[str | int]]:
    """The figures: for each campaign how many trials there were, how many were right, and the problems by kind."""
    table: list[list[str | int]] = []
    for campaign in dict.fromkeys(trial.campaign for trial in found):
        own = [trial for trial in found if trial.campaign == campaign]
        problems = Counter(problem for trial in own for problem in trial.problems)
        table.append([campaign, len(own), sum(trial.right for trial in own), *(problems[kind] for kind in PROBLEMS)])
    return table


@app.command()
def campaign(
    kinds: Annotated[list[str], typer.Argument(help=f"Which: {', '.join(TRIALS)}.")],
    seed: Annotated[int, typer.Option(help="Of all trials.")] = 0,
    trials: Annotated[int | None, typer.Option(min=1, help="Of each kind. Default: a whole campaign.")] = None,
    only: Annotated[int | None, typer.Option(min=0, help="The number of one trial, to repeat it.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
    quick: Annotated[bool, typer.Option("--quick", help="Without the commands that take long.")] = False,
    work: Annotated[Path | None, typer.Option(help="Folder of the trials. Default: a temporary one.")] = None,
    save: Annotated[bool, typer.Option("--save", help="Write the figures to docs/results.")] = False,
) -> None:
    """Disturb the command line, and say what it did not take. Needs Linux; disk faults need a C compiler."""
    if unknown := [kind for kind in kinds if kind not in TRIALS]:
        raise UserError(f"no campaign {unknown[0]!r}: choose from {', '.join(TRIALS)}")
    if not hasattr(os, "fork"):
        raise UserError("the campaign forks processes, which this system cannot: use Linux")
    if not os.environ.get(_WORK):
        _respawn((work or Path(tempfile.mkdtemp(prefix="carv3d-campaign-"))).absolute())
    folder, compiled = Path(os.environ[_WORK]), "LD_PRELOAD" in os.environ
    if not compiled:
        print(
            "no C compiler for the disk faults: processes are killed by the clock, files are damaged", file=sys.stderr
        )
    chosen = {kind: [only] if only is not None else range(trials or TRIALS[kind]) for kind in kinds}
    plans = [Plan(seed, kind, number, quick, compiled) for kind in kinds for number in chosen[kind]]
    found = run(plans, folder, jobs)
    from scripts.benchmarks import harness

    table = harness.Table(["campaign", "tried", "right", *PROBLEMS], rows(found))
    print(table.markdown(), end="")
    if save:
        import torch

        table.made_by = harness.made_by("scripts.campaign", torch.device("cpu"), quick=quick)
        harness.write(harness.RESULTS / "campaign.json", {"campaign": table})
    if not all(trial.right for trial in found):
        print(f"what went wrong is in {folder}", file=sys.stderr)
        raise typer.Exit(1)
    if work is None:
        shutil.rmtree(folder)


def main() -> int:
    """Run the command line; a mistake is one line and exit code 2."""
    try:
        return app(standalone_mode=False, prog_name="python -m scripts.campaign") or 0
    except UserError as error:
        message = str(error)
    except Exception as error:  # typer has its own copy of click's exceptions, or click's, by its version
        if not hasattr(error, "format_message"):
            raise
        message = error.format_message()
    print(f"error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
