"""`carv3d render`, `export`, `evaluate`: from a finished run."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from carv3d.cli.app import AsJson, RunPath, app, console, expanded
from carv3d.errors import UserError
from carv3d.system.progress import shown


@app.command()
def render(
    run_path: RunPath,
    frames: Annotated[int | None, typer.Option(min=1, max=10_000, help="Frames of the turntable.")] = None,
    size: Annotated[int | None, typer.Option(min=16, max=4096, help="Pixels along a side.")] = None,
    elevation: Annotated[float | None, typer.Option(min=-89, max=89, help="Degrees.")] = None,
    output: Annotated[
        Path | None, typer.Option(callback=expanded, help="The video, .mp4, .webm or .gif; default: RUN/turntable.mp4.")
    ] = None,
) -> None:
    """Make the turntable and the contact sheet of a run again.

    Example: `carv3d render outputs/gaussians/a-red-mushroom-1 --frames 120 --size 512`
    """
    from carv3d import build
    from carv3d.generation import results
    from carv3d.generation.generation import load_trained
    from carv3d.images import refuse_other_videos
    from carv3d.runs import Run, disk_errors
    from carv3d.runs.independent import make_each
    from carv3d.system.threads import set_threads

    if output is not None:
        refuse_other_videos(output)
    with Run.open(run_path) as run:
        config = run.config
        set_threads(config.threads)
        trained, sampler = load_trained(run), build.camera_sampler(config)
        section = config.turntable
        section.frames, section.size = frames or section.frames, size or section.size
        section.elevation = section.elevation if elevation is None else elevation
        path = output or run.turntable
        sheet = path.with_name("contact_sheet.png" if output is None else f"{path.stem}_contact_sheet.png")
        scene, renderer = trained.scene, trained.renderer
        with disk_errors(path), shown(console, "rendering") as watch:
            made = {
                sheet.name: lambda: results.write_contact_sheet(scene, renderer, sampler, section.sheet, sheet),
                path.name: lambda: results.write_turntable(scene, renderer, sampler, section, path, watch),
            }
            make_each(made, "give the command again")
    console.print(f"{path}\n{sheet}")


@app.command()
def export(
    run_path: RunPath,
    formats: Annotated[str | None, typer.Option("--format", help="glb, obj, ply, splat; several with commas.")] = None,
    resolution: Annotated[
        int | None, typer.Option(min=8, max=1024, help="Cells along a side of the isosurface grid.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Share of the light absorbed at the surface; lower: fatter.")
    ] = None,
    faces: Annotated[int | None, typer.Option(min=0, help="Most triangles; 0: all.")] = None,
    texture: Annotated[str | None, typer.Option(help="uv (a baked picture) or vertex (vertex colours).")] = None,
    texture_size: Annotated[
        int | None, typer.Option(min=16, max=16_384, help="Pixels along a side of the picture.")
    ] = None,
    output: Annotated[Path | None, typer.Option(callback=expanded, help="Folder; default: RUN/mesh.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a run's object as a mesh; Gaussians also as a .ply for splat viewers.

    Example: `carv3d export outputs/gaussians/a-red-mushroom-1 --format glb,obj --resolution 192`
    """
    from carv3d.config import load, validate
    from carv3d.generation.generation import load_trained
    from carv3d.generation.results import export as export_files
    from carv3d.runs import Run, disk_errors
    from carv3d.system.threads import set_threads

    with Run.open(run_path) as run:
        given = {
            "formats": f"[{formats}]" if formats else None,
            "resolution": resolution,
            "threshold": threshold,
            "faces": faces,
            "texture": texture,
            "texture_size": texture_size,
        }
        overrides = [f"mesh.{key}={value}" for key, value in given.items() if value is not None]
        config = load(run.path / "config.yaml", overrides)
        validate(config)
        set_threads(config.threads)
        folder = output or run.mesh
        with disk_errors(folder), shown(console, "meshing"):
            mesh, files = export_files(load_trained(run).scene, config.export, folder)
    report: dict[str, Any] = {"files": [str(f) for f in files]}
    if mesh is not None:
        report |= {"vertices": len(mesh.vertices), "faces": len(mesh.faces), **mesh.info}
    if as_json:
        print(json.dumps(report))
    else:
        for file in report["files"]:
            console.print(file)
        if mesh is not None:
            console.print(f"{report['faces']} faces, closed: {'yes' if mesh.info['watertight'] else 'no'}")


@app.command()
def evaluate(
    run_path: RunPath,
    clip: Annotated[
        str | None, typer.Option(help="A CLIP model, a folder or hub id: how views fit the prompt.")
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(metavar="FILE", help="What CLIP tells the prompt from; default: carv3d's library.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Of a threestudio run; default: the one in its configs/parsed.yaml.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a run's object: against the true one (prompts of the built-in world), and by CLIP (any prompt).

    RUN may also be a threestudio run, or its `save` folder: its test pictures are judged by CLIP.

    Example: `carv3d evaluate outputs/gaussians/a-red-mushroom-1 --json`,
    `carv3d evaluate RUN --clip openai/clip-vit-base-patch32`
    """
    if prompts and not clip:
        raise UserError("--prompts are what CLIP tells the prompt from: give --clip too")
    from carv3d.integrations.threestudio import pictures
    from carv3d.prompts.files import LIBRARY, find_prompts, read_prompts

    others = read_prompts(find_prompts(prompts or LIBRARY)) if clip else []
    if pictures.is_threestudio_run(run_path):
        figures = _evaluate_pictures(run_path, clip, prompt, others)
    else:
        if prompt is not None:
            raise UserError("a run of carv3d has its own prompt: leave --prompt out")
        from carv3d.evaluation.clip import Clip
        from carv3d.evaluation.evaluation import evaluate_run
        from carv3d.runs import Run
        from carv3d.system.threads import set_threads

        with Run.open(run_path) as run:
            set_threads(run.config.threads)
            with shown(console, "rendering"):
                figures = evaluate_run(run, Clip(clip) if clip else None, others)
    if as_json:
        print(json.dumps(figures))
    else:
        for key, value in figures.items():
            console.print(f"{key:>16}  {round(value, 3) if isinstance(value, float) else value}")


def _evaluate_pictures(path: Path, clip: str | None, prompt: str | None, others: list[str]) -> dict[str, Any]:
    from carv3d.evaluation.clip import DEFAULT_CLIP, Clip
    from carv3d.integrations.threestudio import pictures

    if clip is None:
        raise UserError(
            f"a threestudio run is judged by CLIP: give --clip {DEFAULT_CLIP}, or a folder with such a model"
        )
    found = pictures.read(path)
    prompt = prompt or found.prompt
    if not prompt:
        raise UserError(f"{found.folder} has no configs/parsed.yaml above it that tells the prompt: give --prompt")
    alignment = Clip(clip).alignment(found.rgb, prompt, others)
    return {"prompt": prompt, "pictures": str(found.folder), "views": len(found.rgb), "clip": clip, **asdict(alignment)}
