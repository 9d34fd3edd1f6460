"""`carv3d generate`."""

from __future__ import annotations

import json
import logging
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from carv3d.cli.app import DEFAULT_CONFIG, Arguments, AsJson, app, console, expanded, sort_words
from carv3d.errors import UserError

if TYPE_CHECKING:
    from carv3d.config import Config
    from carv3d.runs import Run
    from carv3d.teachers import Teacher


@app.command()
def generate(
    words: Arguments = None,
    output: Annotated[
        Path | None, typer.Option(callback=expanded, help="The run's folder; default: a new one in output_dir.")
    ] = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Go on with a run that was stopped.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Also prompts the built-in teacher cannot know.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a 3D object of a prompt.

    Example: `carv3d generate "a red mushroom"`,
    `carv3d generate configs/shapes.yaml prompt="a blue chair" guidance.resamples=8`,
    `carv3d generate --resume outputs/gaussians/a-red-mushroom-1`
    """
    from carv3d.config import find_config, load, validate
    from carv3d.generation.config import require_prompt

    if resume:
        name, prompt, overrides = sort_words(words or [])
        if name or prompt or output or force:
            raise UserError("--resume goes on with the run's own config: it takes KEY=VALUE and nothing else")
        from carv3d.runs import Run

        run = Run.open(resume, write=True)
        with run:
            config = load(run.path / "config.yaml", overrides)
            validate(config)
            _finish(run, resume=True, teacher=None, changed=config if overrides else None, as_json=as_json)
    else:
        from carv3d.prompts.files import look_up

        name, prompt, overrides = sort_words(words or [])
        source = find_config(name or DEFAULT_CONFIG)
        config = load(source, overrides)
        if prompt is not None:
            config.prompt = prompt
        config.force = config.force or force
        validate(config)
        config.prompt = look_up(require_prompt(config), config.prompt_library)
        import torch

        from carv3d import build
        from carv3d.runs import Run
        from carv3d.shapes import parse
        from carv3d.system.threads import cores

        device = build.device(config)
        # The resolved values are kept, so that a resumed run has the same device and number of threads.
        config.device, config.threads = str(device), config.threads or cores()
        if getattr(config.teacher, "builtin_world", False) and not config.force:
            parse(config.prompt)
        _say_memory(config)
        # Before the folder is made, so that a mistake leaves nothing.
        teacher = build.teacher(config, device)
        build.check(config, teacher, torch.Generator(device))
        with Run.create(config, source.stem, shlex.join(sys.argv), folder=output, device=device) as run:
            _finish(run, resume=False, teacher=teacher, changed=None, as_json=as_json)


def _say_memory(config: Config) -> None:
    """Warn before the weights are loaded if the run will probably not fit; the estimate is not exact."""
    teacher = config.teacher
    if not getattr(teacher, "loads_pipeline", False) or getattr(teacher, "builtin_world", False):
        return
    from carv3d.system.doctor import needs

    for finding in needs(config):
        if finding.what == "memory" and not finding.ok:
            logging.getLogger("carv3d").warning("this run will probably not fit into memory: %s", finding.found)


def _finish(run: Run, *, resume: bool, teacher: Teacher | None, changed: Config | None, as_json: bool) -> None:
    """Train to the end, make the results, print their paths."""
    from carv3d.generation.generation import generate as generate_run
    from carv3d.training.engine import how_it_goes_on

    console.print(f"{run.config.prompt} → {run.path}", markup=False, highlight=False, soft_wrap=True)
    try:
        generate_run(run, resumed=resume, console=console, teacher=teacher, changed=changed)
    except KeyboardInterrupt as error:
        console.print(how_it_goes_on(run, error), markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(130) from None
    if as_json:
        print(json.dumps({"run": str(run.path)}))
        return
    for name in ("contact_sheet.png", "turntable.mp4", "mesh"):
        if (run.path / name).exists():
            console.print(f"  {run.path / name}", markup=False, highlight=False, soft_wrap=True)
