"""How good a run's object is on the way, and its final picture. Kept in the run's folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from carv3d.cameras import Cameras, orbit
from carv3d.comparison.execution import Job
from carv3d.evaluation import Judge
from carv3d.generation import load_trained
from carv3d.images import write_png
from carv3d.results import render_views
from carv3d.runs import Run, replace_file
from carv3d.shapes import parse

PICTURE = "picture.png"


@dataclass(frozen=True)
class Quality:
    """Figures of a run.

    Attributes:
        steps: at which quality was measured; only the end, if the true object is not known.
        psnr: dB, as of `carv3d.evaluation.Score`, at each of the steps; empty if the true object is not known.
        iou: the same.
        seconds: of training, as the run measured them.
    """

    steps: list[int]
    psnr: list[float]
    iou: list[float]
    seconds: float


def picture_camera() -> Cameras:
    """The one camera of final pictures: from the front and the side, a little above."""
    return orbit(1, 20.0, start=35.0, height=128, width=128)


def kept_quality(job: Job, measurable: bool) -> Quality | None:
    """The figures in a finished run's folder; None if there are none that fit."""
    try:
        found = Quality(**json.loads(_path(job).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
    steps = job.method.curve_steps if measurable else [job.method.steps]
    whole = found.steps == steps and len(found.psnr) == (len(steps) if measurable else 0)
    return found if whole and (job.path / PICTURE).is_file() else None


def measure(job: Job, judge: Callable[[], Judge] | None) -> Quality:
    """Measure a finished run, and write the figures and the picture.

    Args:
        job: the run.
        judge: gives the judge; None if the true object is not known.

    Raises:
        UserError: a checkpoint of the curve is missing or damaged, or the disk may not be written to.
    """
    run = Run.open(job.path)
    psnr, iou = [], []
    steps = job.method.curve_steps if judge else [job.method.steps]
    for step in steps:
        trained = load_trained(run, step=step)
        if judge:
            rgb, opacity, _ = render_views(trained.scene, trained.renderer, judge().cameras)
            found = judge().fidelity(parse(job.prompt), rgb, opacity)
            psnr.append(found[0])
            iou.append(found[1])
    write_png(render_views(trained.scene, trained.renderer, picture_camera())[0][0], job.path / PICTURE)
    quality = Quality(steps, psnr, iou, trained.seconds)
    replace_file(_path(job), (json.dumps(asdict(quality)) + "\n").encode())
    return quality


def _path(job: Job) -> Path:
    return job.path / "quality.json"
