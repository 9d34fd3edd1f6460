"""The command line: `carv3d VERB`. Heavy modules are imported by the verb that needs them."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console

from carv3d import __version__
from carv3d.errors import UserError

if TYPE_CHECKING:
    from carv3d.runs import Run
    from carv3d.teachers import Teacher

# Workers that spin while they wait make two threads on two busy cores slower than one.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

app = typer.Typer(
    name="carv3d",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Text to 3D, with compute-aware variance reduction.",
)
_console = Console(stderr=True)

_DEFAULT_CONFIG = "shapes"
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A folder that `carv3d generate` made.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Words = Annotated[list[str] | None, typer.Argument(metavar="[PROMPT] [CONFIG] [KEY=VALUE]...", show_default=False)]


def _sort_words(words: list[str]) -> tuple[str | None, str | None, list[str]]:
    """The config's name, the prompt and the overrides among the words of a command line."""
    from carv3d.config import find_config

    overrides = [w for w in words if re.match(r"[A-Za-z_][\w.]*=", w)]
    config = prompt = None
    for word in (w for w in words if w not in overrides):
        is_config = word.endswith((".yaml", ".yml"))
        if not is_config and not re.search(r"\s", word):
            try:
                find_config(word)
                is_config = True
            except UserError:
                pass
        if is_config and config is None:
            config = word
        elif not is_config and prompt is None:
            prompt = word
        else:
            raise UserError(f"one prompt and one config at most, and then KEY=VALUE: what is {word!r}?")
    return config, prompt, overrides


@app.command()
def generate(
    words: Words = None,
    output: Annotated[Path | None, typer.Option(help="The run's folder; default: a new one in output_dir.")] = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Go on with a run that was stopped.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Also prompts the built-in teacher cannot know.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a 3D object of a prompt.

    Example: `carv3d generate "a red mushroom"`,
    `carv3d generate configs/shapes.yaml prompt="a blue chair" guidance.resamples=8`,
    `carv3d generate --resume outputs/shapes/a-red-mushroom-1`
    """
    from carv3d.config import find_config, load, require_prompt, validate

    if resume:
        name, prompt, overrides = _sort_words(words or [])
        if name or prompt or output or force:
            raise UserError("--resume goes on with the run's own config: it takes KEY=VALUE and nothing else")
        from carv3d.runs import Run

        run = Run.open(resume, write=True)
        with run:
            config = load(run.path / "config.yaml", overrides)
            validate(config)
            if overrides:
                run.save_config(config)
            _finish(run, resume=True, teacher=None, as_json=as_json)
    else:
        name, prompt, overrides = _sort_words(words or [])
        source = find_config(name or _DEFAULT_CONFIG)
        config = load(source, overrides)
        if prompt is not None:
            config.prompt = prompt
        config.force = config.force or force
        validate(config)
        require_prompt(config)
        from carv3d import build
        from carv3d.generation import cores
        from carv3d.runs import Run
        from carv3d.shapes import parse

        device = build.device(config)
        # As found, not as asked for: a run that goes on elsewhere keeps its device and its order of sums.
        config.device, config.threads = str(device), config.threads or cores()
        if getattr(config.teacher, "path", "builtin") == "builtin" and not config.force:
            parse(config.prompt)
        teacher = build.teacher(config, device)  # before the folder is made: nothing is left of a mistake
        with Run.create(config, source.stem, shlex.join(sys.argv), folder=output, device=device) as run:
            _finish(run, resume=False, teacher=teacher, as_json=as_json)


def _finish(run: Run, *, resume: bool, teacher: Teacher | None, as_json: bool) -> None:
    """Train to the end, make the results, say where they are."""
    from carv3d.generation import generate as generate_run

    _console.print(f"{run.config.prompt} → {run.path}", markup=False, highlight=False, soft_wrap=True)
    try:
        generate_run(run, resume=resume, console=_console, teacher=teacher)
    except KeyboardInterrupt:
        command = f"carv3d generate --resume {shlex.quote(str(run.path))}"
        _console.print(f"stopped and saved; go on with: {command}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(130) from None
    if as_json:
        print(json.dumps({"run": str(run.path)}))
        return
    for name in ("contact_sheet.png", "turntable.mp4", "mesh"):
        if (run.path / name).exists():
            _console.print(f"  {run.path / name}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def render(
    run_path: RunPath,
    frames: Annotated[int | None, typer.Option(min=1, help="Frames of the turntable.")] = None,
    size: Annotated[int | None, typer.Option(min=16, help="Pixels along a side.")] = None,
    elevation: Annotated[float | None, typer.Option(min=-89, max=89, help="Degrees.")] = None,
    output: Annotated[Path | None, typer.Option(help="The video; default: RUN/turntable.mp4.")] = None,
) -> None:
    """Make the turntable and the contact sheet of a run again.

    Example: `carv3d render outputs/shapes/a-red-mushroom-1 --frames 120 --size 512`
    """
    from carv3d import build, results
    from carv3d.generation import load_trained, set_threads
    from carv3d.runs import Run, disk_errors

    with Run.open(run_path) as run:
        config = run.config
        set_threads(config)
        trained, sampler = load_trained(run), build.camera_sampler(config)
        section = config.turntable
        section.frames, section.size = frames or section.frames, size or section.size
        section.elevation = section.elevation if elevation is None else elevation
        path = output or run.turntable
        with disk_errors(path), _console.status("rendering"):
            results.write_turntable(trained.scene, trained.renderer, sampler, section, path)
            sheet = path.with_name("contact_sheet.png" if output is None else f"{path.stem}_contact_sheet.png")
            results.write_contact_sheet(trained.scene, trained.renderer, sampler, sheet)
    _console.print(f"{path}\n{sheet}")


@app.command()
def export(
    run_path: RunPath,
    formats: Annotated[str | None, typer.Option("--format", help="glb, obj, ply; several with commas.")] = None,
    resolution: Annotated[int | None, typer.Option(min=8, help="Cells along a side of the isosurface grid.")] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Share of the light absorbed at the surface; lower: fatter.")
    ] = None,
    faces: Annotated[int | None, typer.Option(min=0, help="Most triangles; 0: all.")] = None,
    texture: Annotated[str | None, typer.Option(help="uv (a baked picture) or vertex (vertex colours).")] = None,
    texture_size: Annotated[int | None, typer.Option(min=16, help="Pixels along a side of the picture.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder; default: RUN/mesh.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a run's object as a mesh.

    Example: `carv3d export outputs/shapes/a-red-mushroom-1 --format glb,obj --resolution 192`
    """
    from carv3d.config import load, validate
    from carv3d.generation import load_trained, set_threads
    from carv3d.results import export_mesh
    from carv3d.runs import Run, disk_errors

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
        set_threads(config)
        folder = output or run.mesh
        with disk_errors(folder), _console.status("meshing"):
            mesh, files = export_mesh(load_trained(run).scene, config.mesh, folder)
    report: dict[str, Any] = {
        "files": [str(f) for f in files],
        "vertices": len(mesh.vertices),
        "faces": len(mesh.faces),
        **mesh.info,
    }
    if as_json:
        print(json.dumps(report))
    else:
        for file in report["files"]:
            _console.print(file)
        _console.print(f"{report['faces']} faces, closed: {'yes' if mesh.info['watertight'] else 'no'}")


@app.command()
def evaluate(run_path: RunPath, as_json: AsJson = False) -> None:
    """Measure a run's object against the true one (prompts of the built-in world).

    Example: `carv3d evaluate outputs/shapes/a-red-mushroom-1 --json`
    """
    from carv3d.evaluation import evaluate_run
    from carv3d.generation import set_threads
    from carv3d.runs import Run

    with Run.open(run_path) as run:
        set_threads(run.config)
        with _console.status("rendering the true objects"):
            figures = evaluate_run(run)
    if as_json:
        print(json.dumps(figures))
    else:
        for key, value in figures.items():
            _console.print(f"{key:>16}  {round(value, 3) if isinstance(value, float) else value}")


@app.command()
def config(words: Words = None) -> None:
    """Print a config with everything in it, or all keys with their meaning.

    Example: `carv3d config`, `carv3d config shapes guidance.resamples=8`
    """
    from carv3d.config import describe, find_config, load, to_yaml, validate

    name, prompt, overrides = _sort_words(words or [])
    if name is None and prompt is None and not overrides:
        print(describe(), end="")
        return
    found = load(find_config(name) if name else None, overrides)
    found.prompt = prompt or found.prompt
    validate(found)
    print(to_yaml(found), end="")


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say whether this machine has what carv3d needs. Exit code 2 if something is missing.

    Example: `carv3d doctor`
    """
    from carv3d.doctor import examine

    findings = examine()
    if as_json:
        print(json.dumps([finding.__dict__ for finding in findings]))
    else:
        for finding in findings:
            _console.print(f"{'[green]ok[/]' if finding.ok else '[red]no[/]'}  {finding.what}: {finding.found}")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(2)


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)


def main() -> None:
    """Run the command line; what the user can mend is one line and exit code 2."""
    try:
        app()
    except UserError as error:
        _fail(str(error))
    except (MemoryError, RuntimeError) as error:
        # torch's own classes for this are not imported here: that would take seconds.
        if "out of memory" not in str(error) and "can't allocate memory" not in str(error):
            raise
        _fail(
            "out of memory: lower guidance.chunk (draws a teacher call), guidance.renders, renderer.samples or the "
            "cameras' size, or use teacher.dtype=float16; a run goes on from its last checkpoint with --resume"
        )


def _fail(message: str) -> NoReturn:
    from rich.markup import escape

    _console.print(f"[bold red]error:[/] {escape(' '.join(message.split()))}", highlight=False, soft_wrap=True)
    sys.exit(2)


if __name__ == "__main__":
    main()
