"""Writing configs: the copy in a run folder, and all keys with their meaning."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import yaml

from carv3d import registry
from carv3d.config.components import config_of
from carv3d.config.interpolation import escape
from carv3d.config.keys import NOT_BLANK, Field, choices, fields_of, walk
from carv3d.config.linear_schedule import LinearSchedule, constant
from carv3d.errors import UserError


def to_yaml(config: Any) -> str:
    """Every key and value of a config, as YAML that `load` reads back into an equal config."""
    return "".join(f"{line}\n" for line in _lines(config, comments=False))


def describe(config: Any = None) -> str:
    """`to_yaml` of a config (default: the defaults of `carv3d generate`) with the meaning and range of every key.

    The other types of each section follow as comments.
    """
    if config is None:
        from carv3d.generation.config import Config

        config = Config()
    header = [f"# {line}".rstrip() for line in (inspect.getdoc(type(config)) or "").splitlines()]
    lines = [*header, "", *_lines(config, comments=True)]
    for path, field, section in walk(config):
        for name in registry.names(field.component.kind) if field.component else ():
            if name != section.type:
                lines += ["", *_other(path, field, name)]
    return "".join(f"{line}\n" for line in lines)


def _other(path: str, field: Field, name: str) -> Iterator[str]:
    """A section with another type, as comments."""
    kind = field.component.kind if field.component else ""
    try:
        of = config_of(kind, name)
    except UserError as error:  # of a package that is broken
        yield f"# Another {kind}, which cannot be used: {error}"
        return
    keys = path.split(".")
    yield f"# Another {kind}:"
    yield f"# {_summary(of)}"
    for line in (*(f"{'  ' * i}{key}:" for i, key in enumerate(keys)), *_lines(of(), True, "  " * len(keys))):
        yield f"# {line}".rstrip()


def _lines(section: Any, comments: bool, indent: str = "") -> Iterator[str]:
    known = fields_of(type(section))
    for key in sorted(known, key=lambda name: (name != "type", known[name].is_section)):
        field, value = known[key], getattr(section, key)
        if field.is_section:
            if comments:
                yield from ("", f"{indent}# {_summary(type(value))}")
            yield f"{indent}{key}:"
            yield from _lines(value, comments, f"{indent}  ")
            continue
        note = "; ".join(filter(None, [meaning(field), " | ".join(choices(field.hint))]))
        yield f"{indent}{key}: {_value(value, field)}" + (f"  # {note}" if note and comments and key != "type" else "")


def _summary(of: type[Any]) -> str:
    return (inspect.getdoc(of) or "").splitlines()[0]


def meaning(field: Field) -> str:
    """What a key is, and its range in words."""
    limits = "" if field.key.pattern == NOT_BLANK else field.key.limits
    return "; ".join(filter(None, [field.key.help, limits]))


def _value(value: Any, field: Field | None) -> str:
    if isinstance(value, LinearSchedule):
        if value == constant(value.first):
            return _value(value.first, None)
        return f"{{{', '.join(f'{key}: {_value(getattr(value, key), None)}' for key in fields_of(LinearSchedule))}}}"
    if isinstance(value, list):
        return f"[{', '.join(_value(item, None) for item in value)}]"
    if isinstance(value, str):
        # Text is quoted, so that none of it is read as a number or a boolean.
        words = {"yes", "true", "false", "off", "null", "nan", "inf"}
        plain = (field and value in choices(field.hint)) or (re.fullmatch("[a-z]{3,}", value) and value not in words)
        return _dump(escape(value), None if plain else '"')
    return _dump(value, None)


def _dump(value: Any, style: str | None) -> str:
    text = yaml.safe_dump(value, default_style=style, width=float("inf"), allow_unicode=True)
    return text.removesuffix("...\n").rstrip("\n")
