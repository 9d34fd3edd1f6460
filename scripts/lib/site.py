"""Hooks of the documentation's build: the page of all config keys, and links to files outside of docs/.

`reference/config.md` is made from the configs' dataclasses, so that a key is described in one place. A link from a page
to a file of the repository that is no page, such as a teacher's card, becomes code.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from carv3d import registry  # noqa: E402
from carv3d.config.components import config_of  # noqa: E402
from carv3d.config.keys import Field, choices, fields_of  # noqa: E402
from carv3d.config.linear_schedule import LinearSchedule  # noqa: E402
from carv3d.config.schemas import PIPELINES  # noqa: E402
from carv3d.config.values import accepted  # noqa: E402
from carv3d.config.writing import meaning  # noqa: E402


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill the page of config keys; turn links that leave docs/ into code."""
    if page.file.src_uri == "reference/config.md":
        markdown += "\n" + "\n".join(_pages())
    folder = (ROOT / "docs" / page.file.src_uri).parent

    def link(match: re.Match[str]) -> str:
        target = (folder / match[2].partition("#")[0]).resolve()
        outside = ROOT in target.parents and not target.is_relative_to(ROOT / "docs")
        is_code = target.is_dir() or target.suffix in (".py", ".yaml")
        return f"{match[1]} (`{target.relative_to(ROOT)}`)" if outside or is_code else match[0]

    return re.sub(r"(?<!!)\[([^\]]*)\]\(((?![a-z]+:|#)[^)\s]+)\)", link, markdown)


def _pages() -> Iterator[str]:
    for verb, config in PIPELINES.items():
        yield from (f"\n## carv3d {verb}\n", *_section(config, "", f"{verb}-"))


def _section(config: type[Any], path: str, prefix: str) -> Iterator[str]:
    """A table of the section's keys, then its sections."""
    known = fields_of(config)
    default = config()
    keys = {name: field for name, field in known.items() if not field.is_section and name != "type"}
    yield f"{(inspect.getdoc(config) or '').partition(chr(10) * 2)[0]}\n"
    if keys:
        yield "| key | type | default | meaning |\n|---|---|---|---|"
    for name, field in keys.items():
        value, said = _default(getattr(default, name)), meaning(field).replace("|", "\\|")
        yield f"| `{path}{name}` | {_type(field)} | `{value}` | {said} |"
    for name, field in known.items():
        if field.component:
            for other in registry.names(field.component.kind):
                heading = f"{path}{name}: {other}"
                yield f"\n### {heading} {{ #{prefix}{heading.replace('.', '-').replace(': ', '-')} }}\n"
                yield from _section(config_of(field.component.kind, other), f"{path}{name}.", prefix)
        elif field.is_section:
            yield f"\n### {path}{name} {{ #{prefix}{path.replace('.', '-')}{name} }}\n"
            yield from _section(field.hint, f"{path}{name}.", prefix)


def _type(field: Field) -> str:
    if field.hint is LinearSchedule:
        return "linear schedule"
    found = choices(field.hint)
    names = {int: "whole number", float: "number", bool: "true or false", str: "text", list[float]: "numbers"}
    names[list[str]] = "list"
    if found and field.hint not in names:
        return " or ".join(
            [*(f"`{choice}`" for choice in found), *(["or others"] if "list" in str(field.hint) else [])]
        )
    return names.get(field.hint) or accepted(field.hint, field.key)


def _default(value: Any) -> str:
    return str(value) if value != "" else '""'
