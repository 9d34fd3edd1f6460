"""What a rule on a config's values is, and those that every section needs."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from carv3d import registry
from carv3d.config.ramp import Ramp
from carv3d.errors import UserError

Rule = tuple[str, Any, bool, str]
"""Key, value, whether it is allowed, what is allowed."""


def check(rules: Iterable[Rule]) -> None:
    """Hold the values against rules.

    Raises:
        UserError: one line that names the first key out of range, its value and what is allowed.
    """
    for key, value, allowed, what in rules:
        if not allowed:
            raise UserError(f"{key} must be {what}, not {shown(value)}")


def shown(value: Any) -> str:
    """A value as an error names it."""
    if isinstance(value, Ramp):
        return repr(value.first) if value.first == value.last else f"{value.first} to {value.last}"
    return repr(value)


def finite(section: Any, prefix: str) -> Iterator[Rule]:
    """No nan or inf anywhere, and every ramp inside the run."""
    for key, value in ((f.name, getattr(section, f.name)) for f in fields(section)):
        path = f"{prefix}{key}"
        if is_dataclass(value):
            yield from finite(value, f"{path}.")
        if isinstance(value, Ramp):
            moment = [value.begin, value.end]
            inside = 0 <= value.begin <= value.end <= 1
            yield f"{path}.begin and .end", moment, inside, "in order and from 0 to 1"
        for number in value if isinstance(value, list) else [value]:
            allowed = not isinstance(number, float) or math.isfinite(number)
            yield path, value, allowed, "finite"


def at_least(section: Any, prefix: str, **lowest: float) -> Iterator[Rule]:
    """Keys of a section with the lowest value of each."""
    for key, low in lowest.items():
        value = getattr(section, key)
        yield f"{prefix}.{key}", value, value >= low, f"at least {low}"


def adam(section: Any, prefix: str) -> Iterator[Rule]:
    """Of a section with `lr` and `betas`."""
    yield from positive(section, prefix, "lr")
    inside = len(section.betas) == 2 and all(0 <= beta < 1 for beta in section.betas)
    yield f"{prefix}.betas", section.betas, inside, "two numbers from 0 up to, not including, 1"


def known(kind: str, name: str) -> tuple[bool, str]:
    """Whether the registry has a component, and what is allowed.

    Raises:
        UserError: a plug-in that cannot be imported, or a name that two packages claim.
    """
    found = name in registry.names(kind)
    if found or "." in name:
        return callable(registry.find(kind, name)), f"a function, see docs/plugins.md: that of {name} is none"
    near = difflib.get_close_matches(name, registry.names(kind), 1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return False, f"{' or '.join(registry.names(kind))}, or package.Name of a plug-in{hint}"


def positive(section: Any, prefix: str, *keys: str) -> Iterator[Rule]:
    """Keys of a section that must be above 0."""
    for key in keys:
        value = getattr(section, key)
        yield f"{prefix}.{key}", value, value > 0, "greater than 0"
