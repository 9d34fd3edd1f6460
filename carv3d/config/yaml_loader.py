"""YAML as people expect it: `1e-3` is a number, and a key given twice is an error."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen and isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is here twice", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


# YAML 1.1, which PyYAML follows, asks for a dot in a number with an exponent.
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789"))


def parse(text: str) -> Any:
    """The values of a YAML text.

    Raises:
        yaml.YAMLError: it is not valid.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except ValueError as error:  # such as the date 2020-13-45
        raise yaml.YAMLError(str(error)) from error


def problem(error: yaml.YAMLError) -> str:
    """What is wrong, in one line."""
    what = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    return str(what).splitlines()[0]


@cache
def line_numbers(text: str) -> dict[str, int]:
    """The line of every dotted key in a YAML text."""
    lines: dict[str, int] = {}

    def walk(node: yaml.Node | None, prefix: str, depth: int) -> None:
        # Deeper than any config; an anchor may even hold itself.
        if isinstance(node, yaml.MappingNode) and depth < 8:
            for key, value in node.value:
                path = f"{prefix}{key.value}"
                lines[path] = key.start_mark.line + 1
                walk(value, f"{path}.", depth + 1)

    walk(yaml.compose(text, Loader=_Loader), "", 0)
    return lines
