"""The command line: `carv3d VERB`, one file for each verb. Heavy modules are imported by the verb that needs them."""

from __future__ import annotations

import logging
import sys
from importlib import import_module
from pkgutil import iter_modules
from typing import NoReturn

from carv3d.cli.app import Warnings, app, console
from carv3d.errors import UserError

# The order of `carv3d --help`; other files follow by name.
_ORDER = ("generate", "results", "measure", "compare", "attribute", "distill", "sample", "threestudio", "about")


def load_verbs() -> None:
    """Import every file of this folder: each adds its verbs to the application."""
    files = {module.name for module in iter_modules(__path__)} - {"app"}
    for name in [*_ORDER, *sorted(files - set(_ORDER))]:
        import_module(f"{__name__}.{name}")


def main() -> None:
    """Run the command line; what the user can mend is one line and exit code 2."""
    load_verbs()
    warnings, logger = Warnings(), logging.getLogger("carv3d")
    logger.addHandler(warnings)
    try:
        app()
    except UserError as error:
        _fail(str(error))
    except (MemoryError, RuntimeError) as error:
        # torch's error classes are not imported here, because that would take seconds.
        if "out of memory" not in str(error) and "can't allocate memory" not in str(error):
            raise
        _fail(
            "out of memory: lower guidance.chunk (draws a teacher call; of distill matching.chunk), guidance.renders, "
            "renderer.samples or the cameras' size, or use teacher.dtype=float16; with measure, fewer --renders and "
            "--resamples; a run goes on from its last checkpoint with --resume"
        )
    finally:
        logger.removeHandler(warnings)


def _fail(message: str) -> NoReturn:
    from rich.markup import escape

    console.print(f"[bold red]error:[/] {escape(' '.join(message.split()))}", highlight=False, soft_wrap=True)
    sys.exit(2)
