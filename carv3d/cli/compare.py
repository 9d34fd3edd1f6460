"""`carv3d compare`."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from carv3d.cli.app import DEFAULT_CONFIG, AsJson, app, console, expanded, overrides_among
from carv3d.config.paths import user_path
from carv3d.errors import UserError


@app.command()
def compare(
    words: Annotated[list[str] | None, typer.Argument(metavar="[CONFIG]... [KEY=VALUE]...", show_default=False)] = None,
    prompts: Annotated[
        str | None, typer.Option(metavar="FILE", help="One prompt a line; default: six of the built-in world.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Runs of each prompt and method.")] = 3,
    clip: Annotated[
        str | None, typer.Option(help="Quality by CLIP, a folder or hub id; default: by the true objects, if known.")
    ] = None,
    equal: Annotated[str, typer.Option(metavar="time|calls", help="What all methods get as much of.")] = "time",
    jobs: Annotated[int, typer.Option(min=1, max=256, help="Runs at a time; they share the cores.")] = 1,
    output: Annotated[
        Path | None, typer.Option(callback=expanded, help="Folder; default: one in output_dir/compare.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare methods on the same prompts and seeds, at equal time or equal teacher calls, on one HTML page.

    One config: plain SDS, reuse of renders alone, the paper's method, and the config itself. Several: each is a
    method, named by its file, and the first is the baseline. The same command continues after a stop; with more
    prompts or seeds it adds them.

    Example: `carv3d compare`, `carv3d compare shapes guidance.resamples=8 --seeds 5 --jobs 2`,
    `carv3d compare mine.yaml other.yaml --equal calls --prompts prompts.txt`
    """
    from carv3d.config import find_config, load, validate

    words = words or []
    overrides = overrides_among(words)
    for word in overrides:
        if word.startswith(("prompt=", "seed=")):
            raise UserError(f"{word}: a comparison takes its prompts from --prompts FILE and its seeds from --seeds N")
    sources = [find_config(word) for word in words if word not in overrides] or [find_config(DEFAULT_CONFIG)]
    configs = [(source.stem, load(source, overrides)) for source in sources]
    for _, found in configs:
        validate(found)
    from carv3d.comparison import compare as run_comparison
    from carv3d.evaluation.clip import DEFAULT_CLIP
    from carv3d.prompts.files import DEFAULT_PROMPTS, find_prompts
    from carv3d.reports.comparison import terminal_table, write_page

    names = "-".join(name for name, _ in configs)
    folder = output or user_path(configs[0][1].output_dir) / "compare" / names
    prompt_file = find_prompts(prompts or DEFAULT_PROMPTS)
    try:
        comparison = run_comparison(
            configs, prompt_file, seeds=seeds, clip=clip, equal=equal, jobs=jobs, folder=folder, console=console
        )
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on", markup=False, highlight=False)
        raise typer.Exit(130) from None
    report = folder / "report.html"
    write_page(comparison, report, shlex.join(["carv3d", *sys.argv[1:]]))
    figures = comparison.figures() | {"report": str(report)}
    if as_json:
        print(json.dumps(figures))
        return
    console.print(terminal_table(comparison))
    if comparison.plan.scale is None:
        console.print(f"no quality: the true objects are not known; give --clip {DEFAULT_CLIP}, or a folder with one")
    console.print(str(report), markup=False, highlight=False, soft_wrap=True)
