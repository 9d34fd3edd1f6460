"""What all verbs share: the application, the console, and the sorting of command line words."""

from __future__ import annotations

import json
import logging
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from carv3d.config.paths import user_path
from carv3d.errors import UserError

# How long torch's idle workers wait actively; read when torch is imported. A step has hundreds of short parallel parts:
# with workers that sleep between them it takes 1.6 times as long, with workers that never sleep up to 5 times on busy
# cores.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

app = typer.Typer(
    name="carv3d",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Text to 3D, with compute-aware variance reduction.",
)
console = Console(stderr=True, emoji=False)  # a colon in a prompt is no markup


class Warnings(logging.Handler):
    """Shows warnings of carv3d, above a progress bar if there is one. The log.txt of a run has them too."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        """Print a line."""
        console.print(f"[yellow]warning:[/] {escape(record.getMessage())}", highlight=False, soft_wrap=True)


DEFAULT_CONFIG = "gaussians"
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A folder that `carv3d generate` made.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Arguments = Annotated[list[str] | None, typer.Argument(metavar="[PROMPT] [CONFIG] [KEY=VALUE]...", show_default=False)]


def expanded(path: Path | None) -> Path | None:
    """A path of the command line with `~` for the home folder: `callback` of the options that name files to write.

    Raises:
        UserError: no file can have this path.
    """
    return None if path is None else user_path(path)


def overrides_among(words: list[str]) -> list[str]:
    """The words of the form KEY=VALUE."""
    return [word for word in words if re.match(r"[A-Za-z_][\w.]*=", word)]


def _refuse_mistyped(word: str) -> None:
    """Refuse a word that looks like a setting and not like a prompt.

    Raises:
        UserError: says how it is written, and how a prompt of these letters is given.
    """
    from carv3d.config import PIPELINES
    from carv3d.config.suggestions import paths

    match = re.fullmatch(r"\s*[-+~]*\s*([\w.-]+)\s*((?:\[[^\]]*\])*)\s*(=+|:)(.*)", word, re.DOTALL)
    if match is None:
        return
    key, index, sign, value = match[1].replace("-", "_"), match[2], match[3], match[4].strip()
    known = any(name == key or key.startswith(f"{name}.") for of in PIPELINES.values() for name in paths(of()))
    if not known and (sign == ":" or re.search(r"\s", word)):
        return  # a prompt such as "house: a red one"
    how = f"{key}={value}" if not index else f"{key}=[...], with all values of the list"
    raise UserError(
        f"{word!r} is not a setting, and a prompt hardly looks so: a setting is written {how}, a prompt "
        f"prompt={json.dumps(word, ensure_ascii=False)}"
    )


def sort_words(words: list[str]) -> tuple[str | None, str | None, list[str]]:
    """The config's name, the prompt and the overrides among the words of a command line."""
    from carv3d.config import find_config

    overrides = overrides_among(words)
    config = prompt = None
    for word in (w for w in words if w not in overrides):
        is_config = word.endswith((".yaml", ".yml"))
        if not is_config and not re.search(r"\s", word):
            with suppress(UserError):
                find_config(word)
                is_config = True
        if is_config and config is None:
            config = word
        elif not is_config and prompt is None:
            _refuse_mistyped(word)
            prompt = word
        else:
            raise UserError(f"one prompt and one config at most, and then KEY=VALUE: what is {word!r}?")
    return config, prompt, overrides
