"""`python -m scripts.benchmarks SUITE [KEY=VALUE]...`, and `python -m scripts.benchmarks docs`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import torch
import typer

from carv3d import build
from carv3d.config import Config
from carv3d.errors import UserError
from carv3d.runs import replace_file
from scripts.benchmarks.harness import PAGES, RESULTS, Bench, every_table, run, suites, with_tables

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(epilog="Suites: " + ", ".join(suites()) + ". `docs` writes the results into the pages.")
def benchmarks(
    suite: Annotated[str, typer.Argument(help="What is measured, or docs.")],
    words: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="For the configs.")] = None,
    tables: Annotated[str, typer.Option(help="Only these tables, separated by commas.")] = "",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    budget: Annotated[float, typer.Option(help="Seconds a measurement.")] = 120.0,
    seed: Annotated[int, typer.Option(help="Of all random numbers.")] = 0,
    threads: Annotated[int, typer.Option(help="Torch threads on the CPU.")] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes and few repeats, for a try.")] = False,
    out: Annotated[Path, typer.Option(help="Folder of runs, and of results unless --save.")] = Path(
        "outputs/benchmarks"
    ),
    save: Annotated[bool, typer.Option("--save", help="Write the results to docs/results.")] = False,
) -> None:
    """Measure a suite of benchmarks."""
    if suite == "docs":
        for page in PAGES:
            replace_file(page, with_tables(page.read_text(encoding="utf-8"), every_table()).encode())
        return
    if quick and save:
        raise UserError("--quick is for a try: docs/results keeps no such figures, so leave --save out")
    torch.set_num_threads(threads)
    where = build.device(Config(device=device))
    names = [name for name in tables.split(",") if name]
    bench = Bench(suite, list(words or []), where, out, 20.0 if quick else budget, seed, quick, names)
    run(bench, RESULTS if save else out / "results")


def main(words: list[str] | None = None) -> int:
    """Run a command line (default: the process's). Returns the exit code: 2, with one line on stderr, for a mistake."""
    try:
        return app(words, prog_name="python -m scripts.benchmarks", standalone_mode=False) or 0
    except UserError as error:
        message = str(error)
    except Exception as error:  # typer has its own copy of click's exceptions, or click's, by its version
        if not hasattr(error, "format_message"):
            raise
        message = error.format_message()
    print(f"error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
