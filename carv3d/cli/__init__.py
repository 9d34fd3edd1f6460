"""The command line: `carv3d VERB`, one file for each verb. Heavy modules are imported by the verb that needs them."""

from __future__ import annotations

import logging
import sys
import threading
from importlib import import_module
from logging.handlers import MemoryHandler
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


def _in_a_thread(found: threading.ExceptHookArgs) -> None:
    """Explain an error of a library's thread. One of the disk is left to the writer, who meets it too."""
    if isinstance(found.exc_value, Exception) and not isinstance(found.exc_value, OSError):
        logging.getLogger("carv3d").warning("%s", explain(found.exc_value).line)


def main() -> None:
    """Run the command line; an error is one line, and exit code 2 where the user can mend it."""
    stop_with_parent()
    load_verbs()
    logger, before = logging.getLogger("carv3d"), MemoryHandler(1000, flushLevel=sys.maxsize, flushOnClose=False)
    warnings = Warnings()
    logger.addHandler(warnings)
    logger.addHandler(before)  # for the log.txt of a run, whose folder is made later
    threading.excepthook = _in_a_thread
    sys.unraisablehook = lambda found: logger.info("%s: %s", found.err_msg, found.exc_value)
    try:
        app()
    except Exception as error:
        line, code = explain(error)
        console.print(f"[bold red]error:[/] {escape(line)}", highlight=False, soft_wrap=True)
        sys.exit(code)
    finally:
        logger.removeHandler(warnings)
        logger.removeHandler(before)
