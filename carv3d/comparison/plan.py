"""The plan of a comparison: methods that get the same prompts, seeds and budget. It is kept in `plan.json`."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from carv3d import build
from carv3d.comparison.calibration import Cost, step_costs
from carv3d.comparison.yardsticks import ALIGNMENT, TRUTH, Scale
from carv3d.config import Config, to_yaml, validate
from carv3d.errors import UserError
from carv3d.runs import disk_errors, replace_file
from carv3d.runs.environment import device_name
from carv3d.system.threads import cores

CURVE_POINTS = 10
"""Checkpoints a run that quality is measured at."""

EQUAL = ("time", "calls")
"""What the methods have equal amounts of."""

# Keys that change neither the result of a run nor its speed. Runs that differ only in these may be compared.
_BOOK_KEEPING = (
    *("prompt", "prompt_library", "seed", "device", "threads", "output_dir", "force", "mesh", "turntable"),
    *(
        "training.preview_every",
        "training.denoising_preview_every",
        "training.checkpoint_every",
        "training.keep_checkpoints",
    ),
)


@dataclass(frozen=True)
class Method:
    """One way to make objects.

    Attributes:
        name: of the method and of its folder.
        config: of its runs, without prompt and seed.
        cost: of a step, as calibrated.
    """

    name: str
    config: Config
    cost: Cost

    @property
    def cameras(self) -> str:
        """How its cameras are drawn: the order of the cameras, or the name of a plug-in's sampler."""
        section = self.config.cameras
        return str(getattr(section, "order", section.type))

    @property
    def steps(self) -> int:
        """Of every run."""
        return self.config.training.steps

    @property
    def seconds(self) -> float:
        """Of a run's steps."""
        return self.steps * self.cost.seconds

    @property
    def calls(self) -> int:
        """(t, eps) draws of a run."""
        return round(self.steps * self.cost.calls)

    @property
    def curve_steps(self) -> list[int]:
        """The steps at which quality is measured; the last is the end."""
        return [*range(_every(self.steps), self.steps, _every(self.steps)), self.steps]


@dataclass(frozen=True)
class Plan:
    """A comparison: every method makes every prompt with the seeds 0 to seeds - 1. The first is the baseline."""

    methods: list[Method]
    prompts: list[str]
    seeds: int
    clip: str  # the model that quality is measured by; "": the true objects, where they are known
    equal: str
    device: str
    device_name: str  # as in a run's environment.json
    threads: int  # of a run, on the CPU

    @property
    def scale(self) -> Scale | None:
        """The measure of quality; None if there is none."""
        if self.clip:
            return ALIGNMENT
        return TRUTH if knows_truth(self.methods[0].config) else None


def knows_truth(config: Config) -> bool:
    """Whether the config's teacher is one of the built-in world, whose true objects are known."""
    return bool(getattr(config.teacher, "builtin_world", False))


def methods_of(configs: Sequence[tuple[str, Config]]) -> list[tuple[str, Config]]:
    """Names and configs of the methods: up to four of one config, or one of each of several.

    One config gives the plain objective (such as SDS), reuse of renders alone (K independent draws), the paper's method
    (with importance and strata), and the config itself. All methods but the config itself have independent noise and
    cameras, as in the paper and in common practice.

    Raises:
        UserError: two of the same name, or configs that cannot be compared.
    """
    if len(configs) == 1:
        stem, config = configs[0]
        if config.guidance.resamples == 1:
            raise UserError(
                f"{stem} has guidance.resamples=1, so that there is no reuse to compare; "
                "give guidance.resamples=4, or several configs"
            )
        sds, reuse, paper = (copy.deepcopy(config) for _ in range(3))
        sds.guidance.resamples = 1
        for other in (sds, reuse):
            other.guidance.proposal, other.guidance.strata = "uniform", "none"
        paper.guidance.proposal, paper.guidance.strata = "importance", "render"
        for other in (sds, reuse, paper):
            other.guidance.coupling = "independent"
            if hasattr(other.cameras, "independent"):
                other.cameras = other.cameras.independent()
        plain = config.guidance.objective.type.rpartition(".")[2].lower()
        found = [(plain, sds), ("reuse", reuse), ("paper", paper), ("carv", config)]
        return [row for row in found if row[0] == "carv" or row[1] != config]
    names = [name for name, _ in configs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"two configs are named {twice[0]}, and a method is named by its file: rename one")
    first_name, first = configs[0]
    for name, config in configs[1:]:
        for key in ("teacher", "views", "threads"):
            if getattr(config, key) != getattr(first, key):
                raise UserError(f"{first_name} and {name} differ in {key}: give both the same {key} to compare them")
    return list(configs)


def equal_steps(own: int, costs: Sequence[float]) -> list[int]:
    """The number of steps of each method that costs as much as `own` steps of the last method."""
    return [max(1, round(own * costs[-1] / cost)) for cost in costs]


def make_plan(
    asked: Sequence[tuple[str, Config]],
    prompts: Sequence[str],
    seeds: int,
    clip: str,
    equal: str,
    jobs: int,
    folder: Path,
    watch: Callable[[float], None] = lambda _: None,
) -> Plan:
    """The plan in the folder, extended to the prompts and seeds; or a new plan, for which the methods are timed.

    Args:
        asked: see `methods_of`.
        prompts: see `read_prompts`.
        seeds: how many.
        clip: see `Plan`.
        equal: one of `EQUAL`.
        jobs: runs at a time, which share the cores.
        folder: of the comparison; `plan.json` and a config for each method are written there.
        watch: called with the fraction of the timing that is done.

    Raises:
        UserError: the plan there is another comparison's, or the methods are for different devices.
    """
    devices = {name: build.device(config) for name, config in asked}
    if len(set(devices.values())) > 1:
        listed = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise UserError(f"compared methods must run on one device, not {listed}; give device=cpu or device=cuda")
    device = next(iter(devices.values()))
    found = _read(folder / "plan.json")
    if found is None:
        threads = asked[0][1].threads or max(1, cores() // jobs)
        costs = step_costs([config for _, config in asked], prompts[0], device, threads, watch)
        equals = [cost.seconds if equal == "time" else cost.calls for cost in costs]
        steps = equal_steps(asked[-1][1].training.steps, equals)
    else:
        _check(found, asked, prompts, seeds, clip, equal, device, folder)
        threads = found["threads"]
        costs = [Cost(row["ms_per_step"] / 1000, row["calls_per_step"]) for row in found["methods"]]
        steps = [row["steps"] for row in found["methods"]]
    methods = [
        Method(name, _run_config(config, count, bool(clip), device, threads), cost)
        for (name, config), count, cost in zip(asked, steps, costs, strict=True)
    ]
    plan = Plan(methods, list(prompts), seeds, clip, equal, str(device), device_name(device), threads)
    _write(plan, asked, folder)
    return plan


def differing_key(one: Config, other: Config) -> str | None:
    """The first key, book-keeping aside, in which two configs differ: "guidance.scale: 3.0 and 7.5"."""
    return _difference(_values(one), _values(other))


# ------------------------------------------------------------------------------------------ the file


def _write(plan: Plan, asked: Sequence[tuple[str, Config]], folder: Path) -> None:
    rows = [
        {
            "name": method.name,
            "ms_per_step": method.cost.seconds * 1000,
            "calls_per_step": method.cost.calls,
            "steps": method.steps,
            "teacher_calls": method.calls,
            "config": _values(config),
        }
        for method, (_, config) in zip(plan.methods, asked, strict=True)
    ]
    values = {
        key: getattr(plan, key) for key in ("clip", "equal", "device", "device_name", "threads", "seeds", "prompts")
    }
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for method in plan.methods:
        replace_file(folder / f"{method.name}.yaml", to_yaml(method.config).encode())
    replace_file(folder / "plan.json", (json.dumps(values | {"methods": rows}, indent=1) + "\n").encode())


def _read(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
        found["methods"][0]["calls_per_step"], found["threads"], found["prompts"], found["seeds"]
    except (OSError, ValueError, LookupError, TypeError):
        raise UserError(f"{path} is no plan of a comparison; give another --output") from None
    return found


def _check(
    found: dict[str, Any],
    asked: Sequence[tuple[str, Config]],
    prompts: Sequence[str],
    seeds: int,
    clip: str,
    equal: str,
    device: torch.device,
    folder: Path,
) -> None:
    """Refuse to go on with another comparison."""

    def refuse(what: str, hint: str = "") -> UserError:
        return UserError(f"{folder} holds a comparison {what}; {hint}give another --output")

    names = [row["name"] for row in found["methods"]]
    if names != [name for name, _ in asked]:
        raise refuse(f"of {', '.join(names)}, not of {', '.join(name for name, _ in asked)}")
    if found["equal"] != equal:
        raise refuse(f"at equal {found['equal']}, not equal {equal}")
    if found.get("clip", "") != clip:
        raise refuse(f"with quality by {found.get('clip') or 'the true objects'}, not by {clip or 'them'}")
    for row, (name, config) in zip(found["methods"], asked, strict=True):
        if difference := _difference(row["config"], _values(config)):
            raise refuse(f"in which {name} is another config ({difference})")
        if config.threads not in (0, found["threads"]):
            raise refuse(f"with threads={found['threads']}, not {config.threads}")
    here = device_name(device)
    if found["device_name"] != here:
        raise refuse(f"made on {found['device_name']}, and this device is {here}")
    if missing := [prompt for prompt in found["prompts"] if prompt not in prompts]:
        raise refuse(f"with the prompt {missing[0]!r}, which the prompt file lacks", "add it, or ")
    if found["seeds"] > seeds:
        raise refuse(f"of {found['seeds']} seeds", f"give --seeds {found['seeds']}, or ")


# ------------------------------------------------------------------------------------------ configs


def _run_config(config: Config, steps: int, by_clip: bool, device: torch.device, threads: int) -> Config:
    """The config of a method's runs: its share of the budget, checkpoints for the curve, no mesh."""
    found = copy.deepcopy(config)
    found.prompt, found.seed, found.device, found.threads = "", 0, str(device), threads
    found.training.steps, found.training.preview_every, found.training.denoising_preview_every = steps, 0, 0
    found.training.checkpoint_every = _every(steps)
    if by_clip or knows_truth(config):  # otherwise there is no curve to measure, and a checkpoint may be large
        found.training.keep_checkpoints = 1000
    found.mesh.formats = []
    found.turntable.frames, found.turntable.size = 24, 128
    validate(found)
    return found


def _every(steps: int) -> int:
    return -(-steps // CURVE_POINTS)


def _values(config: Config) -> dict[str, Any]:
    """The config's values as JSON has them, without book-keeping."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    for key in _BOOK_KEEPING:
        section, _, leaf = key.rpartition(".")
        (values[section] if section else values).pop(leaf)
    return values


def _difference(one: dict[str, Any], other: dict[str, Any]) -> str | None:
    a, b = dict(_flat(one)), dict(_flat(other))
    keys = (key for key in [*a, *(key for key in b if key not in a)] if a.get(key) != b.get(key))
    return next((f"{key}: {a.get(key)} and {b.get(key)}" for key in keys), None)


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
