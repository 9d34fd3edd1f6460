"""Writing configs: the snapshot in a run folder, and the whole schema with its comments."""

from __future__ import annotations

import ast
import inspect
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from carv3d import registry
from carv3d.config import schema
from carv3d.config.kinds import section
from carv3d.config.loading import escape
from carv3d.config.ramp import Ramp, constant
from carv3d.errors import UserError


def to_yaml(config: Any) -> str:
    """Every key and value of a config, as YAML that `load` reads back into an equal config."""
    return "".join(f"{line}\n" for line in _lines(config, comments=False))


def describe(config: Any = None) -> str:
    """`to_yaml` of a config (default: the defaults) with the comments of the schema's source.

    The kinds of scene and teacher that the config does not use follow as comments.
    """
    config = config or schema.Config()
    module = inspect.getmodule(type(config))
    header = [f"# {line}".rstrip() for line in inspect.cleandoc(module.__doc__ or "").splitlines()] if module else []
    lines = [*header, "", *_lines(config, comments=True)]
    for path, kind in schema.KINDS.items():
        used: Any = config
        for key in path.split("."):
            used = getattr(used, key, None)
        for name in registry.names(kind) if used is not None else ():
            if name != used.type:
                try:
                    of = section(kind, name)
                except UserError as error:  # of a package that is broken
                    lines += ["", f"# Another {kind}, which cannot be used: {error}"]
                    continue
                depth = path.count(".") + 1
                heads = [f"{'  ' * i}{key}:" for i, key in enumerate(path.split("."))]
                doc = (inspect.getdoc(of) or "").splitlines()[0]
                other = [f"# {doc}", *heads, *_lines(of(), True, "  " * depth)]
                lines += ["", f"# Another {kind}:"]
                lines += [line if line.startswith("#") else f"# {line}".rstrip() for line in other]
    return "".join(f"{line}\n" for line in lines)


def _lines(of: Any, comments: bool, indent: str = "") -> Iterator[str]:
    hints = get_type_hints(type(of))
    notes = _comments(type(of).__module__).get(type(of).__name__, {})
    for key in sorted((f.name for f in fields(of) if f.init), key=lambda name: name != "type"):
        value, hint = getattr(of, key), hints[key]
        if is_dataclass(value) and not isinstance(value, Ramp):
            if comments:
                yield from ("", f"{indent}# {(inspect.getdoc(type(value)) or '').splitlines()[0]}")
            yield f"{indent}{key}:"
            yield from _lines(value, comments, f"{indent}  ")
            continue
        line = f"{indent}{key}: {_value(value, hint)}"
        note = notes.get(key, "")
        if get_origin(hint) is Literal and key != "type":
            note = "; ".join(filter(None, [note, " | ".join(get_args(hint))]))
        yield f"{line}  # {note}" if comments and note else line


def _value(value: Any, hint: Any) -> str:
    if isinstance(value, Ramp):
        if value == constant(value.first):
            return _value(value.first, float)
        return f"{{{', '.join(f'{f.name}: {_value(getattr(value, f.name), float)}' for f in fields(value))}}}"
    if isinstance(value, list):
        return f"[{', '.join(_value(item, None) for item in value)}]"
    if isinstance(value, str):
        # Text is quoted, so that none of it is ever read as a number or a boolean.
        plain = get_origin(hint) is Literal or (re.fullmatch("[a-z]{3,}", value) and value not in _YAML_WORDS)
        style = None if plain else '"'
        return _dump(escape(value), style)
    return _dump(value, None)


_YAML_WORDS = {"yes", "true", "false", "off", "null", "nan", "inf"}


def _dump(value: Any, style: str | None) -> str:
    text = yaml.safe_dump(value, default_style=style, width=float("inf"), allow_unicode=True)
    return text.removesuffix("...\n").rstrip("\n")


@cache
def _comments(module: str) -> dict[str, dict[str, str]]:
    """The trailing comment of every field of every dataclass in a module's source."""
    try:
        source = inspect.getsource(sys.modules[module])
    except (OSError, TypeError):  # of a notebook's plug-in
        return {}
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    at_line = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    return {
        of.name: {
            item.target.id: at_line.get(item.end_lineno or item.lineno, "")
            for item in of.body
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
        }
        for of in ast.parse(source).body
        if isinstance(of, ast.ClassDef)
    }
