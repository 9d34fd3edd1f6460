"""A run from start to end: train, keep checkpoints and metrics, then make the results."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress, TextColumn

from carv3d import build
from carv3d.config import Config
from carv3d.errors import UserError
from carv3d.generation import results
from carv3d.renderers import Renderer
from carv3d.runs import Checkpoint, Interruption, Run
from carv3d.scenes import Scene
from carv3d.system.progress import progress
from carv3d.system.threads import set_threads
from carv3d.teachers import Teacher
from carv3d.training.trainer import StepLog, Trainer, check_logs

log = logging.getLogger(__name__)

# Steps whose figures are fetched from the device together: a fetch makes the CPU wait.
_FETCH_EVERY = 10


@dataclass(frozen=True)
class Trained:
    """What a run's checkpoint holds for looking at.

    Attributes:
        scene, renderer: on the run's device.
        step: steps done.
        seconds: training time, results not included.
    """

    scene: Scene
    renderer: Renderer[Any]
    step: int
    seconds: float


def load_trained(run: Run, config: Config | None = None, *, step: int | None = None) -> Trained:
    """The scene and renderer of a run's checkpoint, the newest or that of a step, without its teacher.

    Raises:
        UserError: no checkpoint, a corrupt one, or one that does not fit the run's config.
    """
    config = config or run.config
    if config.device.startswith("cuda") and not torch.cuda.is_available():
        # What was trained on a GPU can be looked at without one.
        config.device = "cpu"
        if hasattr(config.renderer, "backend"):
            config.renderer.backend = "auto"
    device = build.device(config)
    checkpoint = run.load_checkpoint(step)
    scene = build.scene(config, torch.Generator(device), fresh=False)
    renderer = build.renderer(config, device)
    mine = {k.removeprefix("renderer."): v for k, v in checkpoint.state.items() if k.startswith("renderer.")}
    try:
        scene.load_state_dict(checkpoint.scene)
        renderer.load_state_dict(mine)
    except RuntimeError as error:
        raise _foreign(run, error) from error
    return Trained(scene, renderer, checkpoint.step, float(checkpoint.info.get("seconds", 0.0)))


def load_trainer(run: Run, step: int | None = None) -> Trainer:
    """A trainer as it was at a run's checkpoint, the newest or that of a step; its teacher is loaded too.

    Raises:
        UserError: see `load_trained`; or the run's teacher or device is not there.
    """
    checkpoint = run.load_checkpoint(step)
    trainer = Trainer(run.config, fresh=False)
    _restore(run, trainer, checkpoint)
    return trainer


def _restore(run: Run, trainer: Trainer, checkpoint: Checkpoint, *, changed: bool = False) -> None:
    try:
        trainer.load_state(checkpoint.step, checkpoint.scene, checkpoint.state)
    except (RuntimeError, KeyError, ValueError) as error:
        if changed:
            raise UserError(
                f"what was changed does not fit the checkpoint in {run.path}, which is of another scene, renderer or "
                "objective: leave it out, or start a new run"
            ) from error
        raise _foreign(run, error) from error


def _foreign(run: Run, error: Exception) -> UserError:
    first = " ".join(str(error).split())[:160]
    return UserError(f"the checkpoint in {run.path} is not of this run's config; start the run anew ({first})")


def generate(
    run: Run, *, resume: bool, console: Console, teacher: Teacher | None = None, changed: Config | None = None
) -> None:
    """Train to the end of the config's steps, then make the turntable, the contact sheet and the mesh.

    Args:
        run: open for writing.
        resume: go on from the newest checkpoint, if there is one.
        console: where the progress bar goes.
        teacher: loaded already; None to load the config's.
        changed: the run's config from now on; it is written once the run has been loaded with it.

    Raises:
        UserError: what the user can mend; a residual or gradient that is not finite among it, of which no
            checkpoint is made.
        KeyboardInterrupt: after a checkpoint has been saved.
    """
    config = changed or run.config
    set_threads(config.threads)
    resume = resume and bool(run.checkpoints.paths())
    trainer = Trainer(config, teacher, fresh=not resume)
    seconds = 0.0
    if resume:
        checkpoint = run.load_checkpoint()
        if checkpoint.step > config.training.steps:
            asked = config.training.steps
            raise UserError(f"training.steps={asked}, but {run.path} has done {checkpoint.step}: give more")
        _restore(run, trainer, checkpoint, changed=changed is not None)
        seconds = float(checkpoint.info["seconds"])
        log.info("resumed after step %d", checkpoint.step)
    if changed is not None:
        run.save_config(changed)
    with progress(console, TextColumn("{task.fields[figures]}")) as bars:
        _Loop(run, trainer, seconds, bars).train()
        _make_results(run, trainer, bars)


class _Loop:
    """The book-keeping around the steps."""

    def __init__(self, run: Run, trainer: Trainer, seconds: float, progress: Progress):
        self.run, self.trainer, self.progress = run, trainer, progress
        self.config = run.config
        self.metrics = run.metrics(resume_step=trainer.step_count)
        self.seconds = seconds  # of training, in earlier processes too
        self.pending: list[StepLog] = []
        self.task = progress.add_task(
            "training", total=self.config.training.steps, completed=trainer.step_count, figures=""
        )

    def train(self) -> None:
        section, trainer = self.config.training, self.trainer
        saved = trainer.step_count if self.run.checkpoints.paths() else -1
        started = time.perf_counter()
        with Interruption() as interruption:
            while trainer.step_count < section.steps:
                self.pending.append(trainer.step())
                step = trainer.step_count
                stop = interruption.asked  # read once: what is saved below is what stopping promises
                last = step == section.steps or stop
                save = last or _every(section.checkpoint_every, step)
                show = last or _every(section.preview_every, step)
                ask = _every(section.denoising_preview_every, step)
                if save or show or ask or len(self.pending) == _FETCH_EVERY:
                    now = time.perf_counter()
                    self.seconds, started = self.seconds + now - started, now
                    self._fetch()
                if show:
                    self._preview(step)
                if ask:
                    results.write_opinion(trainer, self.run.previews / f"teacher_{step:06d}.png")
                if save and step != saved:
                    self._save()
                    saved = step
                if save or show or ask:  # none is training time
                    started = time.perf_counter()
                if stop:
                    raise KeyboardInterrupt

    def _fetch(self) -> None:
        if not self.pending:
            return
        try:
            rows = check_logs(self.pending)
        except FloatingPointError as error:
            raise UserError(
                f"{error}; nothing was saved since the last checkpoint. Go on from it with less: "
                f"carv3d generate --resume {self.run.path} with a lower optimizer.lr or guidance.scale, or "
                "teacher.dtype=float32"
            ) from error
        for record, row in zip(self.pending, rows, strict=True):
            self.metrics.write(record.step, row | {"seconds": self.seconds})
        self.pending.clear()
        figures = f"grad {rows[-1]['gradient_norm']:.3g}  ess {rows[-1]['effective_sample_size']:.1f}"
        self.progress.update(self.task, completed=self.trainer.step_count, figures=figures)

    def _preview(self, step: int) -> None:
        path = self.run.previews / f"step_{step:06d}.png"
        results.write_preview(self.trainer.scene, self.trainer.renderer, self.trainer.sampler, path)

    def _save(self) -> None:
        scene, state = self.trainer.state()
        self.run.save_checkpoint(self.trainer.step_count, scene, state, {"seconds": self.seconds})


def _make_results(run: Run, trainer: Trainer, progress: Progress) -> None:
    config, scene, renderer = run.config, trainer.scene, trainer.renderer
    sampler = trainer.sampler
    task = progress.add_task("turntable", total=config.turntable.frames, figures="")
    results.write_contact_sheet(scene, renderer, sampler, config.turntable.sheet, run.path / "contact_sheet.png")
    results.write_turntable(
        scene,
        renderer,
        sampler,
        config.turntable,
        run.turntable,
        lambda done, total: progress.update(task, completed=done, total=total),
    )
    if config.mesh.formats:
        task = progress.add_task("mesh", total=1, figures="")
        mesh, _ = results.export(scene, config.mesh, run.mesh)
        progress.update(task, completed=1, figures=f"{len(mesh.faces)} faces" if mesh else "")


def _every(interval: int, step: int) -> bool:
    return interval > 0 and step % interval == 0
