"""`carv3d threestudio`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from carv3d.cli.app import app, console


@app.command()
def threestudio(
    checkout: Annotated[Path, typer.Argument(metavar="PATH", help="A threestudio checkout: the folder of launch.py.")],
    remove: Annotated[bool, typer.Option("--remove", help="Take the extension out again.")] = False,
    python: Annotated[
        str, typer.Option(metavar="PYTHON", help="The Python that runs launch.py; default: this one.")
    ] = sys.executable,
) -> None:
    """Put carv3d's guidances into a threestudio checkout, as the extension `custom/threestudio-carv3d`.

    Example: `carv3d threestudio ~/threestudio`, then in that folder
    `python launch.py --config configs/dreamfusion-sd.yaml --train system.guidance_type=carv-guidance`
    """
    from carv3d.integrations.threestudio import install as extension

    if remove:
        found = extension.remove(checkout)
        say(f"removed from {found.folder}")
        for path in found.kept:
            say(f"left, because it is not as carv3d wrote it: {path}")
        return
    with console.status("trying the extension in threestudio's environment"):
        found = extension.install(checkout, python)
    say(str(found.folder))
    for path in found.kept:
        say(f"left as it is, because it differs from carv3d's: {path}")
    if found.untried:
        console.print(
            "[yellow]warning:[/] the extension was not tried, because threestudio does not import here", end=": "
        )
        say(found.untried)
    say(
        f"next: cd {checkout}\n"
        "      python launch.py --config configs/dreamfusion-sd.yaml --train --gpu 0 "
        'system.guidance_type=carv-guidance system.prompt_processor.prompt="a red chair"\n'
        f"      ready configs are in custom/{extension.NAME}/configs; its README.md tells the keys"
    )


def say(text: str) -> None:
    """Print a line."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
