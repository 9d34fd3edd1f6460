"""HTML pages that are one file each, with styles, plots, pictures and videos inside."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup

from carv3d.runs import replace_file

_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".mp4": "video/mp4"}


@dataclass(frozen=True)
class Table:
    """A table of texts and figures. Numbers are given as texts, with their significant digits.

    Attributes:
        head: the columns' names.
        rows: a cell for each column. strong: indices of emphasised rows.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    strong: Sequence[int] = ()


@dataclass
class Section:
    """A heading, and under it paragraphs, figures and tables in the order in which they are added."""

    title: str
    items: list[tuple[str, object, str]] = field(default_factory=list)

    def text(self, paragraph: str) -> Section:
        """Add a paragraph."""
        self.items.append(("text", paragraph, ""))
        return self

    def plot(self, element: str, caption: str = "") -> Section:
        """Add an SVG element, see `carv3d.reports.svg`."""
        self.items.append(("plot", Markup(element), caption))
        return self

    def table(self, table: Table, caption: str = "") -> Section:
        """Add a table."""
        self.items.append(("table", table, caption))
        return self

    def media(self, rows: Sequence[Sequence[tuple[str, bytes | Path]]], caption: str = "") -> Section:
        """Add a grid of pictures or videos, each (label, PNG bytes or file)."""
        grid = [[(label, *_embed(source)) for label, source in row] for row in rows]
        self.items.append(("media", grid, caption))
        return self


@dataclass
class Page:
    """A page: title, a first paragraph with the finding, and sections."""

    title: str
    lead: str
    sections: list[Section] = field(default_factory=list)
    footer: str = ""

    def section(self, title: str) -> Section:
        """Add a section."""
        self.sections.append(Section(title))
        return self.sections[-1]

    def write(self, path: Path) -> None:
        """Write the page.

        Raises:
            UserError: the disk is full, or may not be written to.
        """
        environment = Environment(
            loader=PackageLoader("carv3d.reports", "."),
            autoescape=select_autoescape(default=True),
            trim_blocks=True,
            lstrip_blocks=True,
        )
        replace_file(path, environment.get_template("page.html.j2").render(page=self).encode())


def colophon(environment: dict[str, Any], *more: str) -> str:
    """A page's last line: machine, versions, time and command.

    Args:
        environment: see `carv3d.runs.environment`.
        more: further text about the machine.
    """
    found = environment
    device = found["cpu"] if found["device"] == "cpu" else f"{found['device']}, {found['cpu']}"
    revision = found["git_revision"] or ""
    revision = f" ({revision[:12]}{'+' * revision.endswith('+')})" if revision else ""
    versions = f"carv3d {found['carv3d']}{revision}, torch {found['torch']}, Python {found['python']}"
    parts = [device, *more, found["platform"], versions, f"started {found['started']}"]
    return "; ".join(parts) + f". Made by: {found['command']}"


def _embed(source: bytes | Path) -> tuple[str, str]:
    """The kind of element, "img" or "video", and a data URL."""
    kind = "image/png" if isinstance(source, bytes) else _TYPES[source.suffix]
    content = source if isinstance(source, bytes) else source.read_bytes()
    url = f"data:{kind};base64,{base64.b64encode(content).decode()}"
    return ("video" if kind.startswith("video") else "img"), url
