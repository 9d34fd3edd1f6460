"""The command line: `carv3d VERB`, one file for each verb. Heavy modules are imported by the verb that needs them."""

from __future__ import annotations

import logging
import sys
from importlib import import_module
from pkgutil import iter_modules

from rich.markup import escape

from carv3d.cli.app import Warnings, app, console
from carv3d.system.explanations import explain
from carv3d.system.parent import stop_with_parent

# The order of `carv3d --help`; other files follow by name.
_ORDER = ("generate", "results", "measure", "compare", "attribute", "distill", "sample", "threestudio", "about")


def load_verbs() -> None:
    """Import every file of this folder: each adds its verbs to the application."""
    files = {module.name for module in iter_modules(__path__)} - {"app"}
    for name in [*_ORDER, *sorted(files - set(_ORDER))]:
        import_module(f"{__name__}.{name}")


def main() -> None:
    """Run the command line; an error is one line, and exit code 2 where the user can mend it."""
    stop_with_parent()
    load_verbs()
    warnings, logger = Warnings(), logging.getLogger("carv3d")
    logger.addHandler(warnings)
    try:
        app()
    except Exception as error:
        line, code = explain(error)
        console.print(f"[bold red]error:[/] {escape(line)}", highlight=False, soft_wrap=True)
        sys.exit(code)
    finally:
        logger.removeHandler(warnings)
