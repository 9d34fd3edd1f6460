"""A distillation from start to end: train, keep checkpoints, metrics and pictures, then write the pipeline."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import TextColumn

from carv3d.cameras import Cameras
from carv3d.config import DistillConfig
from carv3d.distillation.one_step import write_pipeline
from carv3d.distillation.run import DistillationRun
from carv3d.distillation.trainer import Distiller
from carv3d.images import sheet, write_png
from carv3d.runs.independent import make_each
from carv3d.system.progress import progress
from carv3d.system.threads import set_threads
from carv3d.teachers import DiffusersTeacher
from carv3d.training.engine import Callback, Engine, refuse_fewer_steps, resume

log = logging.getLogger(__name__)

_AZIMUTHS, _ELEVATIONS = (20.0, 110.0, -160.0, -70.0), (15.0, 30.0, 15.0, 30.0)  # of the previews
_MOST_ROWS = 16


def load_distiller(run: DistillationRun, step: int | None = None, teacher: DiffusersTeacher | None = None) -> Distiller:
    """A distiller as it was at a run's checkpoint, the newest or that of a step.

    Raises:
        UserError: no checkpoint, a corrupt one, or one that does not fit the run's config.
    """
    distiller = Distiller(run.config, teacher)
    resume(run, distiller, step=step)
    return distiller


def distil(
    run: DistillationRun,
    *,
    resumed: bool,
    console: Console,
    distiller: Distiller | None = None,
    changed: DistillConfig | None = None,
) -> None:
    """Train to the end of the config's steps, then write the pipeline and a picture of samples.

    Args:
        run: open for writing.
        resumed: go on from the newest checkpoint, if there is one.
        console: where the progress bar goes.
        distiller: at its start, built already; None to build the config's.
        changed: the run's config from now on; it is written once the run has been loaded with it.

    Raises:
        UserError: what the user can mend; the fake score's divergence among it, of which no checkpoint is made.
        KeyboardInterrupt: after a checkpoint has been saved.
    """
    config = changed or run.config
    set_threads(config.threads)
    distiller = distiller or Distiller(config)
    seconds = 0.0
    if resumed and run.checkpoints.paths():
        refuse_fewer_steps(run, max(run.checkpoints.paths()), config.training.steps)
        seconds = resume(run, distiller, changed=changed is not None)
        log.info("resumed after step %d", distiller.step_count)
    if changed is not None:
        run.save_config(changed)

    def preview(step: int) -> None:
        write_samples(distiller, run.previews / f"step_{step:06d}.png")

    with progress(console, TextColumn("{task.fields[figures]}")) as bars:
        engine = Engine(
            run,
            distiller,
            [Callback(config.training.preview_every, preview, at_end=True)],
            bars=bars,
            title="distilling",
            shown=lambda row: f"fake loss {row['fake_loss']:.3f}  difference {row['difference']:.3g}",
            remedy="a lower fake.lr or generator.lr, or more fake.updates",
            seconds=seconds,
        )
        if not run.checkpoints.paths():
            engine.save(0)  # a run that diverges early can go on from its start
        engine.train()
    made = {
        run.pipeline.name: lambda: write_pipeline(distiller, run.pipeline),
        run.samples.name: lambda: write_samples(distiller, run.samples),
    }
    make_each(made, f"carv3d distill --resume {shlex.quote(str(run.path))} makes them")


def write_samples(distiller: Distiller, path: Path) -> None:
    """Write one-step pictures of up to sixteen prompts, spread over their list: four noises for each prompt."""
    prompts = distiller.conditions.prompts
    rows = min(len(prompts), _MOST_ROWS)
    # The steps vary, so that all colours of the built-in world occur.
    index = [(n * len(prompts)) // rows + (3 * n) % max(len(prompts) // rows, 1) for n in range(rows)]
    columns = len(_AZIMUTHS)
    cameras = Cameras.look_at_origin(torch.tensor(_AZIMUTHS * rows), torch.tensor(_ELEVATIONS * rows))
    rng = torch.Generator(distiller.device).manual_seed(0)
    z = distiller.sample([i for i in index for _ in range(columns)], cameras, rng)
    pictures = torch.cat([distiller.teacher.decode(part) for part in z.split(columns)])
    write_png(sheet(pictures.cpu(), 4 * columns if rows % 4 == 0 else columns), path)
