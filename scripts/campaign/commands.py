"""The command lines of the campaign, in the smallest sizes that pass every stage, and what each leaves."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.campaign.server import Box

EXACT = ["teacher.type=exact", "teacher.views=6", "teacher.neighbours=3"]
TINY = [
    "threads=1",
    "cameras.height=16",
    "cameras.width=16",
    "renderer.samples=12",
    "guidance.resamples=2",
    "training.checkpoint_every=4",
    "training.preview_every=6",
    "mesh.resolution=10",
    "mesh.faces=150",
    "mesh.texture_size=32",
    "turntable.frames=3",
    "turntable.size=16",
    "turntable.fps=4",
    "turntable.sheet=16",
]
VOXELS = ["shapes", "scene.resolution=8", "renderer.occupancy_resolution=8", "renderer.occupancy_every=3"]
HASH_GRID = [
    *VOXELS[:1],
    *VOXELS[2:],
    "scene.type=hash_grid",
    "scene.levels=3",
    "scene.log2_table=8",
    "scene.base_resolution=4",
    "scene.finest_resolution=16",
    "scene.hidden=8",
]
GAUSSIANS = [
    "gaussians",
    "scene.count=40",
    "scene.densify.every=3",
    "scene.densify.most=80",
    "scene.densify.begin=0.0",
    "scene.densify.end=1.0",
    "scene.densify.gradient=1.0",
    "mesh.formats=[glb,splat]",
]
DISTIL = [
    "threads=1",
    "teacher.path=teacher",
    "teacher.view_words=true",
    "prompts=prompts.txt",
    "matching.renders=2",
    "matching.resamples=2",
    "fake.updates=1",
    "fake.batch=2",
    "training.steps=6",
    "training.preview_every=3",
    "training.checkpoint_every=2",
]
ATTRIBUTE = [
    "threads=1",
    "data.items=24",
    "draws.count=2",
    "projection.dimension=16",
    "queries.steps=2",
    "rows=8",
    "top=3",
]
STEPS = 14


def generate(*words: str, steps: int = STEPS) -> list[str]:
    """Words of `carv3d generate`, with a quick teacher."""
    return ["generate", "a red cube", words[0], *TINY, *EXACT, *words[1:], f"training.steps={steps}"]


@dataclass(frozen=True, eq=False)
class Command:
    """One command line and its result.

    Attributes:
        name: for the table.
        words: the command line, in the box's working folder.
        result: the folder or file that it writes there.
        again: the command line that goes on after a stop; `words` if there is none.
        needs: what the working folder has before: names in the folder of prepared things.
        patience: seconds, after which it counts as hanging.
        weight: how often the command is tried, in comparison with the others.
        started: whether `again` is the right one for a folder; else `words` are given once more.
    """

    name: str
    words: Sequence[str]
    result: str
    again: Sequence[str] = ()
    needs: Sequence[str] = ()
    patience: float = 60.0
    weight: float = 1.0
    started: Callable[[Path], bool] = field(default=lambda path: (path / "environment.json").exists())

    def goes_on(self, box: Box) -> Sequence[str]:
        """The command line that a user gives after a stop."""
        return self.again if self.again and self.started(box.work / self.result) else self.words

    def prepare(self, box: Box, prepared: Path) -> Box:
        """A box with what the command needs."""
        box.make()
        for name in self.needs:
            source, target = prepared / name, box.work / name
            if source.is_dir():
                shutil.copytree(source, target)
            else:
                shutil.copyfile(source, target)
        return box


RUNS = {
    "generate, voxel grid": VOXELS,
    "generate, hash grid": HASH_GRID,
    "generate, Gaussians": GAUSSIANS,
    "generate, learned background": [*VOXELS, "renderer.background=learned", "cameras.order=sequence"],
}
COMMANDS = [
    *(
        Command(name, [*generate(*words), "--output", "run"], "run", ["generate", "--resume", "run"], weight=3)
        for name, words in RUNS.items()
    ),
    Command("render", ["render", "run", "--frames", "2", "--size", "20"], "run", needs=["run"], weight=2),
    Command(
        "export",
        ["export", "run", "--format", "glb,obj,ply", "--resolution", "9", "--faces", "60"],
        "run",
        needs=["run"],
        weight=4,
    ),
    Command("evaluate", ["evaluate", "run", "--json"], "run", needs=["run"]),
    Command(
        "measure",
        ["measure", "run", "--budget", "1", "--resamples", "1,2", "--renders", "1", "--precision", "1"],
        "run",
        needs=["run"],
    ),
    Command("attribute", ["attribute", "a red cube", *ATTRIBUTE, "--output", "found"], "found", weight=2),
    Command(
        "distill",
        ["distill", *DISTIL, "--output", "distilled"],
        "distilled",
        ["distill", "--resume", "distilled"],
        needs=["teacher", "prompts.txt"],
        weight=3,
    ),
    Command(
        "sample",
        ["sample", "distilled", "a red cube", "--count", "1", "--output", "samples.png"],
        "samples.png",
        needs=["distilled"],
    ),
    Command(
        "compare",
        [
            "compare",
            "one.yaml",
            "two.yaml",
            "--prompts",
            "prompts.txt",
            "--seeds",
            "1",
            "--equal",
            "calls",
            "--output",
            "compared",
        ],
        "compared",
        needs=["one.yaml", "two.yaml", "prompts.txt"],
        patience=300.0,
        weight=0.5,
    ),
]
"""Every verb that works with files."""
SLOW = [command for command in COMMANDS if command.name in ("evaluate", "measure", "attribute", "distill", "compare")]
"""Those that take more than three seconds."""


def write_inputs(folder: Path) -> None:
    """What commands need and no other command makes: a teacher with random weights, prompts, two configs."""
    import torch

    from scripts.random_teacher import make

    make("tiny", folder / "teacher", dtype=torch.float32, divide=40, groups=4)
    (folder / "prompts.txt").write_text("a red cube\na blue cone\n")
    dotted = [word.partition("=") for word in [*TINY, *EXACT, *VOXELS[1:], "training.steps=4", "mesh.formats=[]"]]
    for name, more in (("one", "guidance.resamples=1"), ("two", "guidance.proposal=importance")):
        nested: dict[str, Any] = {}
        for key, _, value in [*dotted, more.partition("=")]:
            *sections, last = key.split(".")
            where = nested
            for section in sections:
                where = where.setdefault(section, {})
            where[last] = json.loads(value) if value[0].isdigit() or value == "[]" else value
        (folder / f"{name}.yaml").write_text(json.dumps(nested))


_NOT_COMPARED = {"environment.json", "log.txt", ".lock"}
_TIMES = {"seconds", "cost", "time"}


def contents(path: Path) -> dict[str, str]:
    """What a result consists of: a digest of each file by its name; figures of the clock are left out.

    Pages and measurements, which depend on times, are "whole", or it is said what is wrong with them.
    """
    if path.is_file():
        return {path.name: _digest(path)}
    found = {}
    for each in sorted(path.rglob("*")):
        name = each.relative_to(path).as_posix()
        if "tensorboard" in each.relative_to(path).parts:
            continue
        if each.is_file() and each.name not in _NOT_COMPARED:
            found[name] = _digest(each)
        elif each.is_dir() and not any(each.iterdir()):
            found[f"{name}/"] = "empty"
    return found


def _digest(path: Path) -> str:
    data = path.read_bytes()
    if path.suffix == ".html":
        return "whole" if data.rstrip().endswith(b"</html>") else "cut"
    if path.name == "measurement.json" or "compared" in path.parts:
        return _whole(path, data)
    with suppress(ValueError, TypeError, LookupError, AttributeError, RecursionError):  # a damaged file
        data = _without_times(path.name, data)
    return hashlib.sha256(data).hexdigest()[:12]


def _without_times(name: str, data: bytes) -> bytes:
    if name == "metrics.jsonl":
        lines = data.decode().split("\n")
        rows = [{key: value for key, value in json.loads(line).items() if key not in _TIMES} for line in lines[:-1]]
        return json.dumps([rows, lines[-1]]).encode()
    if name == "state.json":
        values = json.loads(data)
        values["info"].pop("seconds", None)
        return json.dumps(values).encode()
    return data


def _whole(path: Path, data: bytes) -> str:
    if path.suffix in (".json", ".jsonl"):
        try:
            for line in data.decode().splitlines() if path.suffix == ".jsonl" else [data.decode()]:
                json.loads(line)
        except (ValueError, RecursionError):
            return "cut"
    return "whole" if data else "empty"


def differences(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    """What is missing, changed or additional in a result."""
    missing = [f"{name} is missing" for name in expected if name not in found]
    changed = [f"{name} differs" for name in expected if name in found and expected[name] != found[name]]
    return [*missing, *changed, *(f"{name} is left over" for name in found if name not in expected)]


def steps_of(run: Path) -> list[int]:
    """The steps in a run's metrics."""
    path = run / "metrics.jsonl"
    if not path.is_file():
        return []
    try:
        return [json.loads(line)["step"] for line in path.read_text().splitlines()]
    except (ValueError, TypeError, LookupError, RecursionError):
        return []
