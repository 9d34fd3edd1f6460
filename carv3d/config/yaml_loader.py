"""YAML as people expect it: `1e-3` is a number, and a key given twice is an error.

A text may be anything: its depth, its size with all aliases written out, and the length of its numbers are limited
before any value is made of it. So a few lines that stand for billions of values cost neither time nor memory.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import yaml
from yaml.constructor import ConstructorError

LONGEST = 200_000
"""Characters of the longest text that is read."""

_DEEPEST = 12  # levels; a config has five
_MOST_VALUES = 5_000  # with aliases written out; a config of every key has 200
_LONGEST_NUMBER = 64  # characters; Python reads no number of more than 4,300 digits


class _Loader(yaml.SafeLoader):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._values: dict[int, int] = {}  # by the id of each complete node: how many values it stands for
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """A node and all below it, or the node of an alias."""
        event: Any = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            node = self.anchors.get(event.anchor)
            if node is not None and id(node) not in self._values:
                raise _refused(f"the alias *{event.anchor} stands within what it stands for", event.start_mark)
        if self._depth == _DEEPEST:
            raise _refused(f"it is nested more than {_DEEPEST} levels deep", event.start_mark)
        self._depth += 1
        made: Any = super().compose_node(parent, index)
        self._depth -= 1
        if made is not None:
            self._values[id(made)] = self._size(made, event.start_mark)
        return made

    def _size(self, node: yaml.Node, mark: Any) -> int:
        """The number of values that a node stands for; each child has been counted."""
        if id(node) in self._values:
            return self._values[id(node)]
        children = node.value if isinstance(node, yaml.CollectionNode) else []
        if isinstance(node, yaml.MappingNode):
            _check_keys(node)
            children = [part for pair in node.value for part in pair]
        size = 1 + sum(self._values[id(child)] for child in children)
        if size > _MOST_VALUES:
            raise _refused(f"it stands for more than {_MOST_VALUES:,} values, its aliases written out", mark)
        return size

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The value of a node. Whatever PyYAML raises for it has the node's line."""
        is_number = isinstance(node, yaml.ScalarNode) and node.tag.endswith((":int", ":float"))
        if is_number and len(node.value) > _LONGEST_NUMBER:
            raise _refused(f"a number of {len(node.value):,} characters", node.start_mark)
        try:
            return super().construct_object(node, deep)
        except yaml.YAMLError:
            raise
        except (ValueError, ArithmeticError, LookupError, AttributeError, TypeError) as error:
            what = node.tag.removeprefix("tag:yaml.org,2002:")
            reason = str(error) if isinstance(error, ValueError) else ""
            said = f"{str(node.value)[:60]!r} is no {what}" + (f" ({reason})" if reason else "")
            raise _refused(said, node.start_mark) from error


def _check_keys(node: yaml.MappingNode) -> None:
    seen = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise _refused("a key must be one word, not a list or a mapping", key.start_mark)
        if key.value in seen:
            raise _refused(f"{key.value[:60]!r} is here twice", key.start_mark)
        seen.add(key.value)


def _refused(what: str, mark: Any) -> ConstructorError:
    return ConstructorError(None, None, what, mark)


# YAML 1.1, which PyYAML follows, asks for a dot in a number with an exponent.
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789"))


def parse(text: str) -> Any:
    """The values of a YAML text.

    Raises:
        yaml.YAMLError: it is not valid, or it is longer, deeper or larger than any config.
    """
    if len(text) > LONGEST:
        raise yaml.YAMLError(f"it has {len(text):,} characters; the most are {LONGEST:,}")
    return yaml.load(text, Loader=_Loader)


def problem(error: yaml.YAMLError) -> str:
    """What is wrong, in one line."""
    what = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    return str(what).splitlines()[0]


@cache
def line_numbers(text: str) -> dict[str, int]:
    """The line of every dotted key in a YAML text that `parse` has read."""
    lines: dict[str, int] = {}

    def walk(node: yaml.Node | None, prefix: str) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                path = f"{prefix}{key.value}"
                lines[path] = key.start_mark.line + 1
                walk(value, f"{path}.")

    walk(yaml.compose(text, Loader=_Loader), "")
    return lines
