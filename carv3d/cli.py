"""The command line: `carv3d VERB`. Heavy modules are imported by the verb that needs them."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import tempfile
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
        import torch

        from carv3d import build
        from carv3d.generation import cores
        from carv3d.runs import Run
        from carv3d.shapes import parse

        device = build.device(config)
        # As found, not as asked for: a run that goes on elsewhere keeps its device and its order of sums.
        config.device, config.threads = str(device), config.threads or cores()
        if getattr(config.teacher, "path", "builtin") == "builtin" and not config.force:
            parse(config.prompt)
        # Before the folder is made: nothing is left of a mistake.
        teacher = build.teacher(config, device)
        build.scene(config, torch.Generator(device))
        build.renderer(config, device)
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
    formats: Annotated[str | None, typer.Option("--format", help="glb, obj, ply, splat; several with commas.")] = None,
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
    """Write a run's object as a mesh; of Gaussians also as a .ply that splat viewers open.

    Example: `carv3d export outputs/shapes/a-red-mushroom-1 --format glb,obj --resolution 192`
    """
    from carv3d.config import load, validate
    from carv3d.generation import load_trained, set_threads
    from carv3d.results import export as export_files
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
            mesh, files = export_files(load_trained(run).scene, config.mesh, folder)
    report: dict[str, Any] = {"files": [str(f) for f in files]}
    if mesh is not None:
        report |= {"vertices": len(mesh.vertices), "faces": len(mesh.faces), **mesh.info}
    if as_json:
        print(json.dumps(report))
    else:
        for file in report["files"]:
            _console.print(file)
        if mesh is not None:
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
def measure(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN | PROMPT] [CONFIG] [KEY=VALUE]...", show_default=False)
    ] = None,
    step: Annotated[int | None, typer.Option(min=0, help="Of a run: the checkpoint's; default: the newest.")] = None,
    budget: Annotated[float, typer.Option(min=0, help="Seconds.")] = 300.0,
    precision: Annotated[float, typer.Option(min=0, help="Stop when every variance is known to this share.")] = 0.05,
    resamples: Annotated[str, typer.Option(help="K of the grid.")] = "1,2,4,8,16",
    renders: Annotated[str, typer.Option(help="R of the grid.")] = "1,2,4,8",
    cost_ratio: Annotated[
        float | None, typer.Option(min=0, help="Count a render's cost as that of so many resamples.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the measurement's draws.")] = 0,
    output: Annotated[Path | None, typer.Option(help="Folder; default: RUN/measure/step_N.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the noise and the cost of the gradient, and say which (R, K) and method pay most.

    At a checkpoint of a run, or at a config's initial scene. Leaves `report.html` and `measurement.json`.

    Example: `carv3d measure outputs/shapes/a-red-mushroom-1`,
    `carv3d measure "a blue chair" --budget 120 --cost-ratio 4`
    """
    from rich.progress import TextColumn

    from carv3d.generation import load_trainer, set_threads
    from carv3d.measurement import observe, report
    from carv3d.progress import progress
    from carv3d.reports.measurement import lead, page_of, terminal_table
    from carv3d.runs import Run, disk_errors, environment, replace_file, slug

    words = words or []
    targets = [word for word in words if (Path(word).expanduser() / "config.yaml").is_file()]
    if targets:
        if len(words) > 1:
            raise UserError("a run is measured with its own config: give the run alone")
        with Run.open(targets[0]) as run:
            set_threads(run.config)
            trainer = load_trainer(run, step)
            title = f"{run.config.prompt}, after {trainer.step_count} of {run.config.training.steps} steps"
            folder = output or run.path / "measure" / f"step_{trainer.step_count:06d}"
    else:
        from carv3d.config import find_config, load, require_prompt, validate
        from carv3d.training import Trainer

        if step is not None:
            raise UserError("--step is of a run's checkpoint: give a run")
        for word in words:
            if "/" in word and "=" not in word and not word.endswith((".yaml", ".yml")):
                raise UserError(f"no run {word}: give a folder that `carv3d generate` made, a prompt or a config")
        name, prompt, overrides = _sort_words(words)
        source = find_config(name or _DEFAULT_CONFIG)
        config = load(source, overrides)
        config.prompt = prompt or config.prompt
        validate(config)
        require_prompt(config)
        set_threads(config)
        trainer = Trainer(config)
        title = f"{config.prompt}, the initial scene"
        folder = output or Path(config.output_dir).expanduser() / "measure" / f"{source.stem}-{slug(config.prompt)}"
    with disk_errors(folder):  # found out now, not after minutes
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    with progress(_console, TextColumn("{task.fields[figures]}")) as bar:
        task = bar.add_task("measuring", total=100, figures="")
        observed = observe(
            trainer,
            renders=_whole_numbers("--renders", renders),
            resamples=_whole_numbers("--resamples", resamples),
            budget=budget,
            precision=precision,
            seed=seed,
            watch=lambda what, share: bar.update(task, figures=what, completed=min(round(100 * share), 100)),
        )
    found = report(observed, cost_ratio)
    machine = environment(shlex.join(["carv3d", *sys.argv[1:]]), trainer.device)
    footer = f"{machine['command']} · {machine['device']} · torch {machine['torch']} · carv3d {__version__}"
    text = json.dumps(found.as_json(), indent=1, allow_nan=False) + "\n"
    replace_file(folder / "measurement.json", text.encode())
    page_of(found, title, f"Gradient noise: {title}", footer).write(folder / "report.html")
    if as_json:
        print(json.dumps(found.as_json(), allow_nan=False))
    else:
        _console.print(terminal_table(found))
        for line in (lead(found), found.setting, str(folder / "report.html")):
            _console.print(line, markup=False, highlight=False, soft_wrap=True)
    if not found.trusted:
        raise typer.Exit(1)


def _whole_numbers(name: str, text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise UserError(f"{name} takes whole numbers with commas between, such as 1,2,4, not {text!r}") from None


@app.command()
def compare(
    words: Annotated[list[str] | None, typer.Argument(metavar="[CONFIG]... [KEY=VALUE]...", show_default=False)] = None,
    prompts: Annotated[
        str | None, typer.Option(metavar="FILE", help="One prompt a line; default: six of the built-in world.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each prompt and method.")] = 3,
    equal: Annotated[str, typer.Option(metavar="time|calls", help="What all methods get as much of.")] = "time",
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time; they share the cores.")] = 1,
    output: Annotated[Path | None, typer.Option(help="Folder; default: one in output_dir/compare.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare methods on the same prompts and seeds, at equal time or equal teacher calls, on one HTML page.

    One config: plain SDS, reuse of renders alone, the paper's method, and the config itself. Several: each is a
    method, named by its file, and the first is the baseline. Stopped, the same command goes on; more prompts or seeds
    are added.

    Example: `carv3d compare`, `carv3d compare shapes guidance.resamples=8 --seeds 5 --jobs 2`,
    `carv3d compare mine.yaml other.yaml --equal calls --prompts prompts.txt`
    """
    from carv3d.config import find_config, load, validate

    words = words or []
    overrides = [w for w in words if re.match(r"[A-Za-z_][\w.]*=", w)]
    for word in overrides:
        if word.startswith(("prompt=", "seed=")):
            raise UserError(f"{word}: a comparison takes its prompts from --prompts FILE and its seeds from --seeds N")
    sources = [find_config(word) for word in words if word not in overrides] or [find_config(_DEFAULT_CONFIG)]
    configs = [(source.stem, load(source, overrides)) for source in sources]
    for _, found in configs:
        validate(found)
    from carv3d.comparison import DEFAULT_PROMPTS, find_prompts
    from carv3d.comparison import compare as run_comparison
    from carv3d.reports.comparison import terminal_table, write_page

    names = "-".join(name for name, _ in configs)
    folder = output or Path(configs[0][1].output_dir).expanduser() / "compare" / names
    prompt_file = find_prompts(prompts or DEFAULT_PROMPTS)
    try:
        comparison = run_comparison(
            configs, prompt_file, seeds=seeds, equal=equal, jobs=jobs, folder=folder, console=_console
        )
    except KeyboardInterrupt:
        _console.print("stopped; the same command goes on", markup=False, highlight=False)
        raise typer.Exit(130) from None
    report = folder / "report.html"
    write_page(comparison, report, shlex.join(["carv3d", *sys.argv[1:]]))
    figures = comparison.figures() | {"report": str(report)}
    if as_json:
        print(json.dumps(figures))
        return
    _console.print(terminal_table(comparison))
    if not comparison.plan.measurable:
        _console.print("no quality: it needs the built-in world for now, where the true objects are known")
    _console.print(str(report), markup=False, highlight=False, soft_wrap=True)


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
def doctor(words: Words = None, as_json: AsJson = False) -> None:
    """Say whether this machine has what carv3d needs, and what a config needs. Exit code 2 if something is missing.

    Of a config: the teacher's weights, their size and licence, and the memory that its steps take; nothing is
    loaded or downloaded for it.

    Example: `carv3d doctor`, `carv3d doctor sd21-base guidance.resamples=16`
    """
    from rich.markup import escape

    from carv3d.config import find_config, load, validate
    from carv3d.doctor import examine

    config = None
    if words:
        name, _, overrides = _sort_words(words)
        config = load(find_config(name or _DEFAULT_CONFIG), overrides)
        validate(config)
    findings = examine(config)
    if as_json:
        print(json.dumps([finding.__dict__ for finding in findings]))
    else:
        for finding in findings:
            mark = "[green]ok[/]" if finding.ok else "[red]no[/]"
            _console.print(f"{mark}  {finding.what}: {escape(finding.found)}", highlight=False, soft_wrap=True)
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
            "cameras' size, or use teacher.dtype=float16; with measure, fewer --renders and --resamples; a run goes on "
            "from its last checkpoint with --resume"
        )


def _fail(message: str) -> NoReturn:
    from rich.markup import escape

    _console.print(f"[bold red]error:[/] {escape(' '.join(message.split()))}", highlight=False, soft_wrap=True)
    sys.exit(2)


if __name__ == "__main__":
    main()
