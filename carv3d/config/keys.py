"""What a config declares of a key besides its type and its default: meaning and range.

    renders: Annotated[int, Key("renders a step (R)", ge=1)] = 1

This is the only place where a key is declared. Loading, validation, `carv3d config` and the reference page read it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Key:
    """Meaning and range of a key.

    Attributes:
        help: what it is, with its unit.
        ge, gt, le, lt: limits of a number, of each number in a list, or of both ends of a linear schedule.
        length: of a list.
        pattern: a regular expression for the whole of a text.
        allowed: what an error says is allowed; the limits in words by default.
        formerly: an older name of the key, which an error explains.
    """

    help: str = ""
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    length: int | None = None
    pattern: str | None = None
    allowed: str = ""
    formerly: str = ""

    @property
    def limits(self) -> str:
        """What is allowed, in words; empty if everything is."""
        if self.allowed:
            return self.allowed
        low, high = (
            str(limit) if isinstance(limit, int) else None if limit is None else f"{limit:g}"
            for limit in ((self.gt if self.ge is None else self.ge), (self.lt if self.le is None else self.le))
        )
        match low, high:
            case None, None:
                return ""
            case _, None:
                return f"at least {low}" if self.ge is not None else f"greater than {low}"
            case None, _:
                return f"at most {high}" if self.le is not None else f"less than {high}"
        if self.ge is not None:
            return f"from {low} to {high}" if self.le is not None else f"at least {low} and less than {high}"
        return f"greater than {low} and {'at most' if self.le is not None else 'less than'} {high}"


@dataclass(frozen=True)
class Component:
    """Marks a section whose `type` names a component of the registry: `scene: {type: gaussians}`.

    Attributes:
        kind: one of `carv3d.registry.KINDS`.
    """

    kind: str


@dataclass(frozen=True)
class Field:
    """One field of a config's dataclass: its type, and what its annotation says."""

    hint: Any
    key: Key
    component: Component | None

    @property
    def is_section(self) -> bool:
        """Whether the value is a mapping of keys. A linear schedule is one value."""
        return self.component is not None or (
            is_dataclass(self.hint) and getattr(self.hint, "__name__", "") != "LinearSchedule"
        )


def fields_of(config: type[Any]) -> dict[str, Field]:
    """The fields of a config's dataclass by name."""
    return _fields(config)  # type: ignore[arg-type]


@cache
def _fields(of: Any) -> dict[str, Field]:
    hints = get_type_hints(of, include_extras=True)
    found = {}
    for name in (f.name for f in fields(of) if f.init):
        hint = hints[name]
        notes: list[Any] = []
        if get_origin(hint) is Annotated:
            hint, *notes = get_args(hint)
        key = next((note for note in notes if isinstance(note, Key)), Key())
        found[name] = Field(hint, key, next((note for note in notes if isinstance(note, Component)), None))
    return found


def walk(section: Any, prefix: str = "") -> Iterator[tuple[str, Field, Any]]:
    """Every field of a config object and of its sections: dotted key, field, value. A section precedes its fields."""
    for name, field in fields_of(type(section)).items():
        value = getattr(section, name)
        yield f"{prefix}{name}", field, value
        if field.is_section:
            yield from walk(value, f"{prefix}{name}.")


def choices(hint: Any) -> list[str]:
    """The texts that a Literal, or a Literal within a union, allows."""
    if get_origin(hint) is Literal:
        return [str(choice) for choice in get_args(hint)]
    return [choice for part in get_args(hint) for choice in choices(part)] if get_args(hint) else []


Strata = Literal["none", "render", "global"]
"""How timesteps are stratified: not at all, over the K of a render, or over the R K of a step."""

Weighting = Literal["sds", "uniform", "fantasia3d", "velocity"]
"""w(t), see `carv3d.sampling.sds_weight`."""

NOT_BLANK = r".*\S.*"
"""The pattern of a text that must not be empty."""

# Declarations that several configs share.
Betas = Annotated[
    list[float],
    Key("of Adam", ge=0, lt=1, length=2, allowed="two numbers from 0 up to, not including, 1"),
]
LearningRate = Annotated[float, Key("of Adam", gt=0)]
Seed = Annotated[int, Key("of the random numbers", ge=0, lt=2**63, allowed="from 0 to 2^63 - 1")]
Fraction = Annotated[float, Key("fraction of the schedule", ge=0, le=1)]
Interval = Annotated[int, Key("steps between two; 0: never", ge=0, le=100_000_000)]
