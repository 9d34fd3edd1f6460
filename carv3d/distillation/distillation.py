"""A distillation from start to end: train, keep checkpoints, metrics and pictures, then write the pipeline."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress, TextColumn

from carv3d.cameras import Cameras
from carv3d.config import DistillConfig
from carv3d.distillation.one_step import write_pipeline
from carv3d.distillation.run import DistillationRun
from carv3d.distillation.trainer import Distiller, DivergenceError
from carv3d.errors import UserError
from carv3d.images import sheet, write_png
from carv3d.runs import Interruption
from carv3d.system.progress import progress
from carv3d.system.threads import set_threads
from carv3d.teachers import DiffusersTeacher

log = logging.getLogger(__name__)

_AZIMUTHS, _ELEVATIONS = (20.0, 110.0, -160.0, -70.0), (15.0, 30.0, 15.0, 30.0)  # of the pictures on the way
_MOST_ROWS = 16


def load_distiller(run: DistillationRun, step: int | None = None, teacher: DiffusersTeacher | None = None) -> Distiller:
    """A distiller as it was at a run's checkpoint, the newest or that of a step.

    Raises:
        UserError: no checkpoint, a corrupt one, or one that does not fit the run's config.
    """
    return _load(run, step, teacher)[0]


def _load(
    run: DistillationRun, step: int | None, teacher: DiffusersTeacher | None, changed: DistillConfig | None = None
) -> tuple[Distiller, float]:
    """The distiller, and the seconds of training behind it."""
    checkpoint = run.load_checkpoint(step)
    distiller = Distiller(changed or run.config, teacher)
    try:
        distiller.load_state(checkpoint.step, checkpoint.scene, checkpoint.state)
    except (RuntimeError, KeyError, ValueError) as error:
        if changed is not None:
            raise UserError(
                f"what was changed does not fit the checkpoint in {run.path}: leave it out, or start a new run"
            ) from error
        first = " ".join(str(error).split())[:160]
        raise UserError(
            f"the checkpoint in {run.path} is not of this run's config; start the run anew ({first})"
        ) from error
    return distiller, float(checkpoint.info["seconds"])


def distil(
    run: DistillationRun,
    *,
    resume: bool,
    console: Console,
    distiller: Distiller | None = None,
    changed: DistillConfig | None = None,
) -> None:
    """Train to the end of the config's steps, then write the pipeline and a picture of samples.

    Args:
        run: open for writing.
        resume: go on from the newest checkpoint, if there is one.
        console: where the progress bar goes.
        distiller: at its start, built already; None to build the config's.
        changed: the run's config from now on; it is written once the run has been loaded with it.

    Raises:
        UserError: what the user can mend; the fake score's divergence among it, of which no checkpoint is made.
        KeyboardInterrupt: after a checkpoint has been saved.
    """
    config = changed or run.config
    set_threads(config.threads)
    seconds = 0.0
    if resume and run.checkpoints.paths():
        distiller, seconds = _load(run, None, None, changed)
        if distiller.step_count > config.training.steps:
            asked = config.training.steps
            raise UserError(f"training.steps={asked}, but {run.path} has done {distiller.step_count}: give more")
        log.info("resumed after step %d", distiller.step_count)
    distiller = distiller or Distiller(config)
    if changed is not None:
        run.save_config(changed)
    with progress(console, TextColumn("{task.fields[figures]}")) as bars:
        _Loop(run, distiller, seconds, bars).train()
    write_samples(distiller, run.samples)
    write_pipeline(distiller, run.pipeline)


class _Loop:
    """The book-keeping around the steps."""

    def __init__(self, run: DistillationRun, distiller: Distiller, seconds: float, bars: Progress) -> None:
        self.run, self.distiller, self.bars = run, distiller, bars
        self.metrics = run.metrics(resume_step=distiller.step_count)
        self.seconds = seconds  # of training, in earlier processes too
        total = run.config.training.steps
        self.task = bars.add_task("distilling", total=total, completed=distiller.step_count, figures="")

    def train(self) -> None:
        section, distiller = self.run.config.training, self.distiller
        if not self.run.checkpoints.paths():
            self._save()  # a run that diverges early has its start to go back to
        with Interruption() as interruption:
            while distiller.step_count < section.steps:
                started = time.perf_counter()
                figures = self._step()
                self.seconds += time.perf_counter() - started
                step = distiller.step_count
                stop = interruption.asked  # read once: what is saved below is what stopping promises
                last = step == section.steps or stop
                self.metrics.write(step, figures | {"seconds": self.seconds})
                shown = f"fake loss {figures['fake_loss']:.3f}  difference {figures['difference']:.3g}"
                self.bars.update(self.task, completed=step, figures=shown)
                if last or _every(section.preview_every, step):
                    write_samples(distiller, self.run.previews / f"step_{step:06d}.png")
                if last or _every(section.checkpoint_every, step):
                    self._save()
                if stop:
                    raise KeyboardInterrupt

    def _step(self) -> dict[str, float]:
        try:
            return self.distiller.step()
        except (DivergenceError, FloatingPointError) as error:
            kept = max(self.run.checkpoints.paths())
            what = (
                str(error) if isinstance(error, DivergenceError) else f"step {self.distiller.step_count + 1}: {error}"
            )
            raise UserError(
                f"{what}; the checkpoint of step {kept} is kept: go on from it with carv3d distill --resume "
                f"{self.run.path} and a lower fake.lr or generator.lr, or more fake.updates"
            ) from error

    def _save(self) -> None:
        average, state = self.distiller.state()
        self.run.save_checkpoint(self.distiller.step_count, average, state, {"seconds": self.seconds})


def write_samples(distiller: Distiller, path: Path) -> None:
    """One-step pictures of up to sixteen of the prompts, spread over their list: a prompt a row of four noises."""
    prompts = distiller.conditions.prompts
    rows = min(len(prompts), _MOST_ROWS)
    # Not a multiple apart, so that the built-in world shows all its colours.
    index = [(n * len(prompts)) // rows + (3 * n) % max(len(prompts) // rows, 1) for n in range(rows)]
    columns = len(_AZIMUTHS)
    cameras = Cameras.look_at_origin(torch.tensor(_AZIMUTHS * rows), torch.tensor(_ELEVATIONS * rows))
    rng = torch.Generator(distiller.device).manual_seed(0)
    z = distiller.sample([i for i in index for _ in range(columns)], cameras, rng)
    pictures = torch.cat([distiller.teacher.decode(part) for part in z.split(columns)])
    write_png(sheet(pictures.cpu(), 4 * columns if rows % 4 == 0 else columns), path)


def _every(interval: int, step: int) -> bool:
    return interval > 0 and step % interval == 0
