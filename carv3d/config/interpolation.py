"""Interpolations, such as `${seed}`, in the texts of a config. OmegaConf resolves them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

_LONGEST = 10_000
"""Characters of a text with all interpolations written out."""

_NESTED = re.compile(r"\$\{[^{}]*\$\{")
_REFERENCE = re.compile(r"\$\{([^${}]*)\}")


def is_interpolation(value: Any) -> bool:
    """Whether OmegaConf would look for a key in it."""
    return isinstance(value, str) and "${" in value


def escape(text: str) -> str:
    """The text written so that OmegaConf reads it literally, with any `${`, and also if it is `???`."""
    if re.fullmatch(r"\\*\?\?\?", text):
        return "\\" + text
    return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", text)


def too_long(values: Mapping[str, Any]) -> str | None:
    """The dotted key of a text that stands for more than 10,000 characters or refers within a reference; None if there
    is none. Found without writing the text out: a few short texts may stand for more than fits into memory.

    Args:
        values: the nested values of a config.
    """
    texts = dict(_texts(values, ""))
    lengths: dict[str, int] = {}

    def length(key: str) -> int:
        if key not in lengths:
            lengths[key] = 0  # where a text leads back to itself, which OmegaConf explains
            text = texts.get(key, "")
            lengths[key] = len(text) + sum(length(other.strip()) for other in _REFERENCE.findall(text))
        return lengths[key]

    for key, text in texts.items():
        if is_interpolation(text) and (_NESTED.search(text) or length(key) > _LONGEST):
            return key
    return None


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from _texts(part, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for number, part in enumerate(value):
            yield from _texts(part, f"{key}[{number}]")
    elif isinstance(value, str):
        yield key, value
