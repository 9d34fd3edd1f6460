"""A run of `carv3d generate` from start to end: train, then make the results."""

from __future__ import annotations

import logging
import shlex
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress, TextColumn

from carv3d import build
from carv3d.config import Config
from carv3d.generation import results
from carv3d.renderers import Renderer
from carv3d.runs import Run
from carv3d.runs.independent import make_each
from carv3d.scenes import Scene
from carv3d.system.progress import progress
from carv3d.system.threads import set_threads
from carv3d.teachers import Teacher
from carv3d.training.engine import Callback, Engine, fitting, refuse_fewer_steps, resume, seconds_of
from carv3d.training.trainer import Trainer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """The parts of a checkpoint that are needed to render.

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
        # A run of a GPU can be rendered without one.
        config.device = "cpu"
        if hasattr(config.renderer, "backend"):
            config.renderer.backend = "auto"
    device = build.device(config)
    checkpoint = run.load_checkpoint(step)
    scene = build.scene(config, torch.Generator(device), fresh=False)
    renderer = build.renderer(config, device)
    mine = {k.removeprefix("renderer."): v for k, v in checkpoint.state.items() if k.startswith("renderer.")}
    with fitting(run):
        scene.load_state_dict(checkpoint.trained)
        renderer.load_state_dict(mine)
    return Trained(scene, renderer, checkpoint.step, seconds_of(checkpoint))


def load_trainer(run: Run, step: int | None = None) -> Trainer:
    """A trainer as it was at a run's checkpoint, the newest or that of a step; its teacher is loaded too.

    Raises:
        UserError: see `load_trained`; or the run's teacher or device is not there.
    """
    trainer = Trainer(run.config, fresh=False)
    resume(run, trainer, step=step)
    return trainer


def generate(
    run: Run, *, resumed: bool, console: Console, teacher: Teacher | None = None, changed: Config | None = None
) -> None:
    """Train to the end of the config's steps, then make the turntable, the contact sheet and the mesh.

    Args:
        run: open for writing.
        resumed: go on from the newest checkpoint, if there is one.
        console: where the progress bar goes.
        teacher: the config's, if it is loaded already.
        changed: the run's config from now on; it is written once the run has been loaded with it.

    Raises:
        UserError: something that the user can mend, for instance a training that diverges; no checkpoint is made then.
        KeyboardInterrupt: the run was stopped; a checkpoint has been saved.
    """
    config = changed or run.config
    set_threads(config.threads)
    resumed = resumed and bool(run.checkpoints.paths())
    trainer = Trainer(config, teacher, fresh=not resumed)
    seconds = 0.0
    if resumed:
        refuse_fewer_steps(run, max(run.checkpoints.paths()), config.training.steps)
        seconds = resume(run, trainer, changed=changed is not None)
        log.info("resumed after step %d", trainer.step_count)
    if changed is not None:
        run.save_config(changed)
    with progress(console, TextColumn("{task.fields[figures]}")) as bars:
        Engine(
            run,
            trainer,
            _callbacks(run, trainer),
            bars=bars,
            title="training",
            shown=lambda row: f"grad {row['gradient_norm']:.3g}  ess {row['effective_sample_size']:.1f}",
            remedy="a lower optimizer.lr or guidance.scale, or teacher.dtype=float32",
            seconds=seconds,
        ).train()
        _make_results(run, trainer, bars)


def _callbacks(run: Run, trainer: Trainer) -> list[Callback]:
    section = run.config.training

    def preview(step: int) -> None:
        path = run.previews / f"step_{step:06d}.png"
        results.write_preview(trainer.scene, trainer.renderer, trainer.sampler, path)

    def denoising_preview(step: int) -> None:
        results.write_denoising_preview(trainer, run.previews / f"denoised_{step:06d}.png")

    return [
        Callback(section.preview_every, preview, at_end=True),
        Callback(section.denoising_preview_every, denoising_preview),
    ]


def _make_results(run: Run, trainer: Trainer, progress: Progress) -> None:
    """The turntable is made last: it marks a run as finished."""
    config, scene, renderer, sampler = run.config, trainer.scene, trainer.renderer, trainer.sampler

    def mesh() -> None:
        task = progress.add_task("mesh", total=1, figures="")
        found, _ = results.export(scene, config.export, run.mesh)
        progress.update(task, completed=1, figures=f"{len(found.faces)} faces" if found else "")

    def sheet() -> None:
        results.write_contact_sheet(scene, renderer, sampler, config.turntable.sheet, run.path / "contact_sheet.png")

    def turntable() -> None:
        task = progress.add_task("turntable", total=config.turntable.frames, figures="")

        def watch(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        results.write_turntable(scene, renderer, sampler, config.turntable, run.turntable, watch)

    made = {"mesh": mesh} if config.export.formats else {}
    made |= {"contact_sheet.png": sheet, "turntable.mp4": turntable}
    make_each(made, f"carv3d generate --resume {shlex.quote(str(run.path))} makes them")
