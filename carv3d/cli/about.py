"""`carv3d config`, `doctor`, `version`."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from carv3d import __version__
from carv3d.cli.app import DEFAULT_CONFIG, Arguments, AsJson, app, console, sort_words
from carv3d.errors import UserError


@app.command()
def config(
    words: Arguments = None,
    of: Annotated[str, typer.Option(metavar="VERB", help="Whose config.")] = "generate",
) -> None:
    """Print a complete config, or all keys with their meaning and range.

    Example: `carv3d config`, `carv3d config shapes guidance.resamples=8`
    """
    from carv3d.config import PIPELINES, describe, find_config, load, to_yaml, validate

    if of not in PIPELINES:
        raise UserError(f"--of takes {' or '.join(PIPELINES)}, not {of!r}")
    name, prompt, overrides = sort_words(words or [])
    if name is None and prompt is None and not overrides:
        print(describe(PIPELINES[of]()), end="")
        return
    found: Any = load(find_config(name) if name else None, overrides, of=PIPELINES[of])
    if prompt:
        if not hasattr(found, "prompt"):
            raise UserError(f"{prompt!r} is no config and no KEY=VALUE")
        found.prompt = prompt
    validate(found)
    print(to_yaml(found), end="")


@app.command()
def doctor(words: Arguments = None, as_json: AsJson = False) -> None:
    """Check whether this machine has what carv3d and a config need. Exit code 2 if something is missing. For a
    config: the teacher's weights, their size and licence, and the memory of its steps; nothing is loaded or
    downloaded.

    Example: `carv3d doctor`, `carv3d doctor sd21-base guidance.resamples=16`
    """
    from rich.markup import escape

    from carv3d.config import find_config, load, validate
    from carv3d.system.doctor import examine

    config = None
    if words:
        name, _, overrides = sort_words(words)
        config = load(find_config(name or DEFAULT_CONFIG), overrides)
        validate(config)
    findings = examine(config)
    if as_json:
        print(json.dumps([finding.__dict__ for finding in findings]))
    else:
        for finding in findings:
            mark = "[green]ok[/]" if finding.ok else "[red]no[/]"
            console.print(f"{mark}  {finding.what}: {escape(finding.found)}", highlight=False, soft_wrap=True)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(2)


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)
