"""What tests of configs share: every key there is."""

from __future__ import annotations

import dataclasses
from itertools import cycle
from typing import Any

import pytest

from carv3d import registry
from carv3d.config import LinearSchedule
from carv3d.config.keys import fields_of
from carv3d.errors import UserError

KINDS = [
    {"scene": scene, "teacher": teacher, "guidance.objective": objective}
    for scene, teacher, objective in zip(
        registry.names("scene"), cycle(registry.names("teacher")), registry.names("objective"), strict=False
    )
]


def kind_overrides(kinds: dict[str, str]) -> list[str]:
    return [f"{name}.type={kind}" for name, kind in kinds.items()]


def leaves(section: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Every dotted key of a config object with its value and type, ramps both whole and in parts."""
    found = []
    for key, field in fields_of(type(section)).items():
        value, hint = getattr(section, key), field.hint
        if dataclasses.is_dataclass(value):
            found += leaves(value, f"{prefix}{key}.")
        if not dataclasses.is_dataclass(value) or isinstance(value, LinearSchedule):
            found.append((prefix + key, value, hint))
    return found


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    message = str(error.value)
    assert "\n" not in message, "the command line prints one line"
    return message
