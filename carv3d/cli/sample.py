"""`carv3d sample`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from carv3d.cli.app import AsJson, app, console, expanded
from carv3d.errors import UserError


@app.command()
def sample(
    run_path: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run of `carv3d distill`, or a pipeline folder that one wrote.")
    ],
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", show_default=False)],
    count: Annotated[int, typer.Option(min=1, max=1000, help="Pictures of each prompt and camera.")] = 4,
    cameras: Annotated[
        str, typer.Option(metavar="AZIMUTH/ELEVATION,...", help="Degrees; of a generator that is told the camera.")
    ] = "20/15",
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of the noise.")] = 0,
    output: Annotated[Path, typer.Option(callback=expanded, help="A PNG file.")] = Path("samples.png"),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Make pictures with a distilled generator: one call of its network, a prompt a row.

    Example: `carv3d sample outputs/distill/one-step-1 "a red chair" "a blue car"`,
    `carv3d sample outputs/distill-cameras/one-step-1 "a green mug" --cameras 0/15,90/15,180/15 --count 1`
    """
    angles = _angles(cameras)
    if output.suffix != ".png":
        raise UserError(f"--output {output}: give a name that ends in .png")
    if not output.parent.is_dir():
        raise UserError(f"--output {output}: there is no folder {output.parent}; make it first")
    import torch

    from carv3d import build
    from carv3d.cameras import Cameras
    from carv3d.distillation import OneStep
    from carv3d.images import sheet, write_png

    generator = OneStep(run_path, build.device_named(device))
    if len(angles) > 1 and not generator.card.camera:
        raise UserError("this generator is told no camera: leave --cameras out")
    azimuths, elevations = ([angle[n] for _ in prompts for angle in angles for _ in range(count)] for n in (0, 1))
    columns = len(angles) * count
    pictures = generator.pictures(
        [prompt for prompt in prompts for _ in range(columns)],
        Cameras.look_at_origin(torch.tensor(azimuths), torch.tensor(elevations)),
        torch.Generator().manual_seed(seed),
    )
    write_png(sheet(pictures, columns), output)
    if as_json:
        print(json.dumps({"picture": str(output), "prompts": prompts, "columns": columns, "network_calls": 1}))
        return
    console.print(f"  {output}", markup=False, highlight=False, soft_wrap=True)


def _angles(text: str) -> list[tuple[float, float]]:
    found = []
    for word in text.split(","):
        match = re.fullmatch(r"(-?\d+(?:\.\d+)?)/(-?\d+(?:\.\d+)?)", word.strip())
        if not match or abs(float(match[2])) >= 90:
            raise UserError(
                f"--cameras takes azimuth/elevation in degrees with commas between, such as 20/15,110/30, not {word!r}"
            )
        found.append((float(match[1]), float(match[2])))
    return found
