"""A whole comparison: plan, runs, quality, results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from carv3d.comparison.execution import Job, check_runs, execute, jobs_of
from carv3d.comparison.plan import EQUAL, Method, Plan, knows_truth, make_plan, methods_of
from carv3d.comparison.quality import Quality, kept_quality, measure
from carv3d.comparison.statistics import Curves, Result, results
from carv3d.comparison.yardsticks import TRUTH, Alignment, Scale, Truth, Yardstick
from carv3d.config import Config
from carv3d.errors import UserError
from carv3d.evaluation.clip import Clip
from carv3d.prompts.files import read_prompts
from carv3d.runs import Run
from carv3d.runs.locking import locked
from carv3d.shapes import parse
from carv3d.system.progress import progress


@dataclass(frozen=True)
class Outcome:
    """The result of a method.

    Attributes:
        method: the method.
        seconds: of training, mean over its runs, as they measured them.
        curves: its quality; None without a measure of quality.
        result: its statistics; None without a measure of quality.
    """

    method: Method
    seconds: float
    curves: Curves | None
    result: Result | None

    def figures(self, scale: Scale) -> dict[str, Any]:
        """The outcome as JSON values; None for unknown figures.

        Args:
            scale: the measure of quality.
        """
        guidance = self.method.config.guidance
        found: dict[str, Any] = {
            "name": self.method.name,
            "renders": guidance.renders,
            "resamples": guidance.resamples,
            "proposal": guidance.proposal,
            "strata": guidance.strata,
            "coupling": guidance.coupling,
            "cameras": self.method.cameras,
            "ms_per_step": self.method.cost.seconds * 1000,
            "steps": self.method.steps,
            "teacher_calls": self.method.calls,
            "seconds": self.method.seconds,
            "measured_seconds": self.seconds,
        }
        first, second = scale.keys
        of = {first: "quality", second: "other", "difference": "quality_difference"}
        of |= {f"{second}_difference": "other_difference", "speedup": "speedup", "speedup_calls": "speedup_calls"}
        for key, name in of.items():
            for suffix, part in (("", "value"), ("_low", "low"), ("_high", "high")):
                found[key + suffix] = getattr(getattr(self.result, name), part) if self.result else None
        for key in ("seconds_needed", "calls_needed"):
            found[key] = getattr(self.result, key) if self.result else None
        return found


@dataclass(frozen=True)
class Comparison:
    """A finished comparison.

    Attributes:
        plan: what was compared.
        outcomes: one for each method; the first is the baseline.
        jobs: all runs.
        environment: versions and machine of one of the runs, see `carv3d.runs.environment`.
        made: the runs that this call made or resumed.
    """

    plan: Plan
    outcomes: list[Outcome]
    jobs: list[Job]
    environment: dict[str, Any]
    made: list[Job]

    def figures(self) -> dict[str, Any]:
        """Everything as JSON."""
        plan = self.plan
        return {
            "methods": [outcome.figures(plan.scale or TRUTH) for outcome in self.outcomes],
            "baseline": plan.methods[0].name,
            "prompts": plan.prompts,
            "seeds": plan.seeds,
            "equal": plan.equal,
        }

    def job(self, method: Method, prompt: str, seed: int = 0) -> Job:
        """A run."""
        wanted = (method.name, prompt, seed)
        return next(job for job in self.jobs if (job.method.name, job.prompt, job.seed) == wanted)


def compare(
    configs: Sequence[tuple[str, Config]],
    prompt_file: Path,
    *,
    seeds: int,
    clip: str | None,
    equal: str,
    jobs: int,
    folder: Path,
    console: Console,
) -> Comparison:
    """Compare methods: make the plan, make the missing runs, measure.

    Args:
        configs: names and configs; see `methods_of`.
        prompt_file: see `read_prompts`.
        seeds: how many; 0 to seeds - 1.
        clip: the CLIP model that quality is measured by; None for the true objects, where they are known.
        equal: "time" or "calls".
        jobs: runs at a time.
        folder: of the comparison; finished runs in it are kept.
        console: where the progress bars go.

    Raises:
        UserError: something that the user can mend; where possible before any run.
        KeyboardInterrupt: after the runs have been stopped; the same call goes on.
    """
    if equal not in EQUAL:
        raise UserError(f"--equal takes {' or '.join(EQUAL)}, not {equal!r}")
    asked = methods_of(configs)
    prompts = read_prompts(prompt_file)
    if any(knows_truth(config) for _, config in asked):
        for prompt in prompts:
            try:
                parse(prompt)
            except UserError as error:
                reason = str(error).removesuffix(" Use --force to go on all the same")
                raise UserError(f"{prompt_file}: {prompt!r}: {reason}") from None
    found = Clip(clip) if clip else None  # a mistake in it is reported before any run
    with locked(folder, "carv3d compare"):
        with progress(console) as bar:
            task = bar.add_task("timing each method, %", total=100, visible=not (folder / "plan.json").exists())

            def watch(share: float) -> None:
                bar.update(task, completed=int(100 * share))

            plan = make_plan(asked, prompts, seeds, clip or "", equal, jobs, folder, watch)
        runs = jobs_of(plan, folder)
        check_runs(runs, plan)
        made = execute(runs, plan, folder, jobs, console)
        check_runs(made, plan)
        yardstick = Alignment(found, plan.prompts) if found else Truth() if plan.scale else None
        qualities = _measure(runs, yardstick, console)
    return Comparison(plan, _outcomes(plan, runs, qualities), runs, Run.open(runs[0].path).environment, made)


def _measure(jobs: Sequence[Job], yardstick: Yardstick | None, console: Console) -> list[Quality]:
    """The figures of every run, read from its folder if they are there."""
    found = [kept_quality(job, yardstick) for job in jobs]
    missing = [index for index, quality in enumerate(found) if quality is None]
    if missing:
        with progress(console) as bar:
            for index in bar.track(missing, description="measuring"):
                found[index] = measure(jobs[index], yardstick)
    return [quality for quality in found if quality is not None]


def _outcomes(plan: Plan, jobs: Sequence[Job], qualities: Sequence[Quality]) -> list[Outcome]:
    by_job = {(job.method.name, job.prompt, job.seed): q for job, q in zip(jobs, qualities, strict=True)}
    seconds, curves = [], []
    for method in plan.methods:
        mine = [[by_job[method.name, prompt, seed] for seed in range(plan.seeds)] for prompt in plan.prompts]
        steps = np.array(method.curve_steps, dtype=np.float64)
        seconds.append(sum(quality.seconds for row in mine for quality in row) / (len(mine) * plan.seeds))
        curves.append(
            Curves(
                steps=steps,
                seconds=steps * method.cost.seconds,
                calls=steps * method.cost.calls,
                quality=np.array([[found.first for found in row] for row in mine]),
                other=np.array([[found.second for found in row] for row in mine]),
            )
        )
    if plan.scale is None:
        return [Outcome(method, time, None, None) for method, time in zip(plan.methods, seconds, strict=True)]
    found = results(curves)
    return [Outcome(*parts) for parts in zip(plan.methods, seconds, curves, found, strict=True)]
