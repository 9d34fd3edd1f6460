"""`carv3d measure`."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from carv3d.cli.app import DEFAULT_CONFIG, AsJson, app, console, expanded, sort_words
from carv3d.config.paths import is_user_file, user_path
from carv3d.errors import UserError

_MOST = 4096  # of R and of K


@app.command()
def measure(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN | PROMPT] [CONFIG] [KEY=VALUE]...", show_default=False)
    ] = None,
    step: Annotated[int | None, typer.Option(min=0, help="Of a run: the checkpoint's; default: the newest.")] = None,
    budget: Annotated[float, typer.Option(min=0, max=10**7, help="Seconds.")] = 300.0,
    precision: Annotated[float, typer.Option(min=0, help="Stop when every variance is known to this share.")] = 0.05,
    resamples: Annotated[str, typer.Option(help="K of the grid.")] = "1,2,4,8,16",
    renders: Annotated[str, typer.Option(help="R of the grid.")] = "1,2,4,8",
    cost_ratio: Annotated[
        float | None, typer.Option(min=0, max=10**6, help="Count a render's cost as that of so many resamples.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of the measurement's draws.")] = 0,
    output: Annotated[Path | None, typer.Option(callback=expanded, help="Folder; default: RUN/measure/step_N.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the noise and the cost of the gradient, and recommend (R, K) and a method.

    At a checkpoint of a run, or at a config's initial scene. Leaves `report.html` and `measurement.json`.

    Example: `carv3d measure outputs/gaussians/a-red-mushroom-1`,
    `carv3d measure "a blue chair" --budget 120 --cost-ratio 4`
    """
    from rich.progress import TextColumn

    from carv3d.generation.generation import load_trainer
    from carv3d.measurement import observe, report
    from carv3d.reports.measurement import lead, page_of, terminal_table
    from carv3d.reports.page import colophon
    from carv3d.runs import Run, environment, made_folder, replace_file, slug
    from carv3d.system.progress import progress
    from carv3d.system.threads import set_threads

    words = words or []
    rs, ks = _whole_numbers("--renders", renders), _whole_numbers("--resamples", resamples)
    targets = [word for word in words if is_user_file(f"{word}/config.yaml")]
    if targets:
        if len(words) > 1:
            raise UserError("a run is measured with its own config: give the run alone")
        with Run.open(targets[0]) as run:
            set_threads(run.config.threads)
            trainer = load_trainer(run, step)
            title = f"{run.config.prompt}, after {trainer.step_count} of {run.config.training.steps} steps"
            folder = output or run.path / "measure" / f"step_{trainer.step_count:06d}"
    else:
        from carv3d.config import find_config, load, validate
        from carv3d.generation.config import require_prompt
        from carv3d.prompts.files import look_up
        from carv3d.training.trainer import Trainer

        if step is not None:
            raise UserError("--step is of a run's checkpoint: give a run")
        for word in words:
            if "/" in word and "=" not in word and not word.endswith((".yaml", ".yml")):
                raise UserError(f"no run {word}: give a folder that `carv3d generate` made, a prompt or a config")
        name, prompt, overrides = sort_words(words)
        source = find_config(name or DEFAULT_CONFIG)
        config = load(source, overrides)
        config.prompt = prompt or config.prompt
        validate(config)
        config.prompt = look_up(require_prompt(config), config.prompt_library)
        set_threads(config.threads)
        trainer = Trainer(config)
        title = f"{config.prompt}, the initial scene"
        folder = output or user_path(config.output_dir) / "measure" / f"{source.stem}-{slug(config.prompt)}"
    with made_folder(folder):  # at the start, not after minutes
        with progress(console, TextColumn("{task.fields[figures]}")) as bar:
            task = bar.add_task("measuring", total=100, figures="")
            observed = observe(
                trainer,
                renders=rs,
                resamples=ks,
                budget=budget,
                precision=precision,
                seed=seed,
                watch=lambda what, share: bar.update(task, figures=what, completed=min(round(100 * share), 100)),
            )
        found = report(observed, cost_ratio)
        machine = environment(shlex.join(["carv3d", *sys.argv[1:]]), trainer.device)
        text = json.dumps(found.as_json(), indent=1, allow_nan=False) + "\n"
        replace_file(folder / "measurement.json", text.encode())
        page_of(found, title, f"Gradient noise: {title}", colophon(machine)).write(folder / "report.html")
    if as_json:
        print(json.dumps(found.as_json(), allow_nan=False))
    else:
        console.print(terminal_table(found))
        for line in (lead(found), found.setting, str(folder / "report.html")):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    if not found.trusted:
        raise typer.Exit(1)


def _whole_numbers(name: str, text: str) -> list[int]:
    words = [word.strip() for word in text.split(",")]
    if not all(re.fullmatch(r"[0-9]{1,6}", word) and 1 <= int(word) <= _MOST for word in words):
        raise UserError(
            f"{name} takes whole numbers from 1 to {_MOST} with commas between, such as 1,2,4, not {text[:60]!r}"
        )
    return [int(word) for word in words]
