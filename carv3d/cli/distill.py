"""`carv3d distill`."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from carv3d.cli.app import AsJson, app, console, expanded, sort_words
from carv3d.errors import UserError

if TYPE_CHECKING:
    from carv3d.config import DistillConfig
    from carv3d.distillation import DistillationRun, Distiller


@app.command()
def distill(
    words: Annotated[list[str] | None, typer.Argument(metavar="[CONFIG] [KEY=VALUE]...", show_default=False)] = None,
    output: Annotated[
        Path | None, typer.Option(callback=expanded, help="The run's folder; default: a new one in output_dir.")
    ] = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Go on with a run that was stopped.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a one-step generator of a teacher, by distribution matching (DMD2).

    Leaves a diffusers pipeline whose U-Net makes a picture in one call; `carv3d sample` uses it.

    Example: `carv3d distill`, `carv3d distill distill-cameras matching.resamples=4`,
    `carv3d distill --resume outputs/distill/one-step-1`
    """
    from carv3d.config import DistillConfig, find_config, load, validate

    name, prompt, overrides = sort_words(words or [])
    if prompt is not None:
        if " " not in prompt:
            find_config(prompt)  # its error lists the names
        raise UserError(f"what is {prompt!r}? prompts come from a file: prompts=FILE, one a line")
    if resume:
        if name or output:
            raise UserError("--resume goes on with the run's own config: it takes KEY=VALUE and nothing else")
        from carv3d.distillation import DistillationRun

        with DistillationRun.open(resume, write=True) as run:
            config = load(run.path / "config.yaml", overrides, of=DistillConfig)
            validate(config)
            _finish(run, None, changed=config if overrides else None, as_json=as_json)
        return
    source = find_config(name or "distill")
    config = load(source, overrides, of=DistillConfig)
    validate(config)
    from carv3d import build
    from carv3d.distillation import DistillationRun, Distiller
    from carv3d.system.threads import cores

    device = build.device(config)
    # The resolved values are kept, so that a resumed run has the same device and number of threads.
    config.device, config.threads = str(device), config.threads or cores()
    distiller = Distiller(config)  # before the folder is made, so that a mistake leaves nothing
    with DistillationRun.create(config, source.stem, shlex.join(sys.argv), folder=output, device=device) as run:
        _finish(run, distiller, changed=None, as_json=as_json)


def _finish(run: DistillationRun, distiller: Distiller | None, *, changed: DistillConfig | None, as_json: bool) -> None:
    """Train to the end, write the pipeline, print its path."""
    from carv3d.distillation import distil
    from carv3d.runs import read_metrics
    from carv3d.training.engine import how_it_goes_on

    console.print(f"{run.config.name} → {run.path}", markup=False, highlight=False, soft_wrap=True)
    try:
        distil(run, resumed=distiller is None, console=console, distiller=distiller, changed=changed)
    except KeyboardInterrupt as error:
        console.print(how_it_goes_on(run, error), markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(130) from None
    if as_json:
        last = read_metrics(run.metrics_path)[-1]
        print(json.dumps({"run": str(run.path), "pipeline": str(run.pipeline)} | last))
        return
    for path in (run.samples, run.pipeline):
        console.print(f"  {path}", markup=False, highlight=False, soft_wrap=True)
