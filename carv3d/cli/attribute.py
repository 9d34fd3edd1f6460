"""`carv3d attribute`."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from carv3d.cli.app import AsJson, app, console, expanded, overrides_among
from carv3d.config.paths import user_path
from carv3d.errors import UserError


@app.command()
def attribute(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[PROMPT]... [CONFIG] [KEY=VALUE]...", show_default=False)
    ] = None,
    prompts: Annotated[str | None, typer.Option(metavar="FILE", help="More prompts, one a line.")] = None,
    output: Annotated[
        Path | None, typer.Option(callback=expanded, help="Folder; default: one in output_dir/attribute.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find the training pictures that influenced a sample, by gradients of the teacher's loss.

    Samples are made from the prompts, or given with `queries.path`. Gradients of the training pictures are kept, so
    that the same command continues after a stop, and other prompts with the same output take seconds each. Leaves
    `report.html`,
    `contact_sheet.png` and `scores.npz`. `carv3d config --of attribute` lists all keys.

    Example: `carv3d attribute "a red chair" "a blue duck"`,
    `carv3d attribute "a red car" teacher.path=PIPELINE data.path=PICTURES layers='up_blocks.*attn2'`
    """
    from carv3d.config import AttributeConfig, load, to_yaml, validate

    own, source, overrides = _sort(words or [])
    config = load(source, overrides, of=AttributeConfig)
    validate(config)
    if prompts is not None:
        from carv3d.prompts.files import find_prompts, read_prompts

        own += [prompt for prompt in read_prompts(find_prompts(prompts)) if prompt not in own]
    data = user_path(config.data.path)
    name = source.stem if source else (data.parent if data.is_file() else data).resolve().name
    folder = output or user_path(config.output_dir) / "attribute" / name
    from carv3d import build
    from carv3d.attribution import attribute as run_attribution
    from carv3d.reports.attribution import lead, write_page
    from carv3d.reports.page import colophon
    from carv3d.runs import environment, replace_file

    device = build.device(config)
    try:
        found = run_attribution(config, own, folder, console, device=device)
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on", markup=False, highlight=False)
        raise typer.Exit(130) from None
    machine = environment(shlex.join(["carv3d", *sys.argv[1:]]), device)
    replace_file(folder / "environment.json", (json.dumps(machine, indent=1) + "\n").encode())
    replace_file(folder / "config.yaml", to_yaml(config).encode())
    write_page(found, folder / "report.html", colophon(machine))
    if as_json:
        print(json.dumps(_figures(found, folder), allow_nan=False))
        return
    for q, query in enumerate(found.queries.names):
        best = ", ".join(f"{found.items.names[n]} {found.scores[q, n]:+.3f}" for n in found.top[q, :3])
        console.print(f"{query}: {best}", markup=False, highlight=False, soft_wrap=True)
    for line in (lead(found), str(folder / "report.html")):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _sort(words: list[str]) -> tuple[list[str], Path | None, list[str]]:
    """Prompts, the config's file, and overrides."""
    import re

    from carv3d.config import find_config

    overrides = overrides_among(words)
    found: list[str] = []
    source: Path | None = None
    for word in (w for w in words if w not in overrides):
        if re.search(r"\s", word):
            if word not in found:
                found.append(word)
        elif source is None:
            source = find_config(word)
        else:
            raise UserError(f"one config at most, prompts of several words, and then KEY=VALUE: what is {word!r}?")
    return found, source, overrides


def _figures(found: Any, folder: Path) -> dict[str, Any]:
    def ranked(q: int, of: Any) -> list[dict[str, Any]]:
        return [{"item": found.items.names[n], "score": float(found.scores[q, n])} for n in of[q].tolist()]

    return {
        "report": str(folder / "report.html"),
        "scores": str(folder / "scores.npz"),
        "items": len(found.items.names),
        "computed": found.new,
        "class_share": found.class_share,
        "queries": [
            {"query": name, "caption": caption, "top": ranked(q, found.top), "bottom": ranked(q, found.bottom)}
            for q, (name, caption) in enumerate(zip(found.queries.names, found.queries.captions, strict=True))
        ],
    }
