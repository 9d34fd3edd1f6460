"""The quality of a run's object during training, and its final picture. Both are kept in the run's folder."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from carv3d import build
from carv3d.cameras import Cameras, orbit
from carv3d.comparison.execution import Job
from carv3d.comparison.yardsticks import Yardstick
from carv3d.generation.generation import load_trained
from carv3d.generation.results import render_views
from carv3d.images import write_png
from carv3d.runs import Run, replace_file

PICTURE = "picture.png"


@dataclass(frozen=True)
class Quality:
    """Figures of a run.

    Attributes:
        keys: of the yardstick's figures; empty without a yardstick.
        steps: at which quality was measured; only the end without a yardstick.
        first, second: the yardstick's figures at each of the steps; empty without one.
        seconds: of training, as the run measured it.
    """

    keys: list[str]
    steps: list[int]
    first: list[float]
    second: list[float]
    seconds: float


def picture_camera() -> Cameras:
    """The camera of final pictures: between front and side, slightly above."""
    return orbit(1, 20.0, start=35.0, height=128, width=128)


def kept_quality(job: Job, yardstick: Yardstick | None) -> Quality | None:
    """The figures in a finished run's folder; None if there are no matching ones."""
    try:
        found = Quality(**json.loads(_path(job).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
    steps = job.method.curve_steps if yardstick else [job.method.steps]
    same = found.keys == (list(yardstick.scale.keys) if yardstick else [])
    whole = same and found.steps == steps and len(found.first) == (len(steps) if yardstick else 0)
    return found if whole and (job.path / PICTURE).is_file() else None


def measure(job: Job, yardstick: Yardstick | None) -> Quality:
    """Measure a finished run, and write the figures and the picture.

    Args:
        job: the run.
        yardstick: the measure of quality; None if there is none.

    Raises:
        UserError: a checkpoint of the curve is missing or damaged, or the disk may not be written to.
    """
    run = Run.open(job.path)
    found: list[tuple[float, float]] = []
    steps = job.method.curve_steps if yardstick else [job.method.steps]
    sampler = build.camera_sampler(job.method.config)
    for step in steps:
        trained = load_trained(run, step=step)
        if yardstick:
            found.append(yardstick.measure(job.prompt, trained, sampler))
    write_png(render_views(trained.scene, trained.renderer, picture_camera())[0][0], job.path / PICTURE)
    first, second = ([pair[index] for pair in found] for index in (0, 1))
    quality = Quality(list(yardstick.scale.keys) if yardstick else [], steps, first, second, trained.seconds)
    replace_file(_path(job), (json.dumps(asdict(quality)) + "\n").encode())
    return quality


def _path(job: Job) -> Path:
    return job.path / "quality.json"
