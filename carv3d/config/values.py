"""Values of keys: types and ranges are checked by pydantic, errors say what is allowed.

Of the libraries that build dataclasses from settings, pydantic checks single values strictly, knows ranges, and works
on plain dataclasses, which plug-ins have. jsonargparse and tyro make command lines of them; they have no layers of
YAML files whose errors name a line, and both resolve type hints that need torch.
"""

from __future__ import annotations

import types
from collections.abc import Iterable
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic import Field as Limits

from carv3d.config.keys import Component, Field, Key, choices, fields_of, walk
from carv3d.config.linear_schedule import LinearSchedule, constant
from carv3d.errors import UserError

Rule = tuple[str, Any, bool, str]
"""Key, value, whether it is allowed, what is allowed."""

_OUT_OF_RANGE = ("greater_than", "less_than", "string_pattern", "too_short", "too_long", "finite_number")


class ValueProblem(Exception):  # noqa: N818
    """What is wrong with a value: the rest of a sentence that begins with the key."""


def check(field: Field, value: Any) -> Any:
    """The value of a field that is no section, converted to the field's type.

    Raises:
        ValueProblem: the type or the range is wrong.
    """
    hint, key = field.hint, field.key
    if hint is LinearSchedule:
        return _schedule(value, key)
    try:
        return _adapter(hint, key).validate_python(value)
    except (ValidationError, OverflowError) as error:
        kinds = [row["type"] for row in error.errors()] if isinstance(error, ValidationError) else ["finite_number"]
        raise ValueProblem(_said(hint, key, value, kinds)) from None


def _said(hint: Any, key: Key, value: Any, kinds: list[str]) -> str:
    if "finite_number" in kinds:
        return f"must be finite, not {shown(value)}"
    if any(kind.startswith(_OUT_OF_RANGE) for kind in kinds):
        return f"must be {key.limits}, not {shown(value)}"
    quotes = "; put it in quotes" if hint is str and value is not None else ""
    return f"takes {accepted(hint, key)}, not {shown(value)}{quotes}"


def _schedule(value: Any, key: Key) -> LinearSchedule:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(value, LinearSchedule):
        value = {name: getattr(value, name) for name in fields_of(LinearSchedule)}
    elif not number and not isinstance(value, dict):
        raise ValueProblem(f"takes {accepted(LinearSchedule, key)}, not {shown(value)}")
    ends = [value] if number else [value[end] for end in ("first", "last")]
    found = [check(Field(float, key, None), end) for end in ends]
    if number:
        return constant(found[0])
    begin, end = (check(fields_of(LinearSchedule)[name], value[name]) for name in ("begin", "end"))
    if begin > end:
        raise ValueProblem(f"must have begin and end in order, not {begin:g} and {end:g}")
    return LinearSchedule(found[0], found[1], begin, end)


@cache
def _adapter(hint: Any, key: Key) -> TypeAdapter[Any]:
    return TypeAdapter(_limited(hint, key), config=ConfigDict(strict=True, allow_inf_nan=False))


def _limited(hint: Any, key: Key) -> Any:
    """The type with the key's limits, as pydantic reads them."""
    if hint in (int, float):
        return Annotated[hint, Limits(ge=key.ge, gt=key.gt, le=key.le, lt=key.lt)]
    if hint is str and key.pattern is not None:
        return Annotated[str, Limits(pattern=f"^(?s:{key.pattern})$")]
    if get_origin(hint) is list:
        items = _limited(get_args(hint)[0], key)
        return Annotated[list[items], Limits(min_length=key.length or 0, max_length=key.length)]  # type: ignore[valid-type]
    if get_origin(hint) in (Union, types.UnionType):
        return Union[tuple(_limited(part, key) for part in get_args(hint))]  # noqa: UP007
    return hint


def is_supported(hint: Any) -> bool:
    """Whether a key can have the type."""
    if get_origin(hint) in (Union, types.UnionType):
        return all(is_supported(part) for part in get_args(hint))
    return get_origin(hint) is Literal or hint in (int, float, bool, str, list[float], list[str], Any)


def accepted(hint: Any, key: Key | None = None) -> str:
    """What a key takes, in words."""
    if get_origin(hint) in (Union, types.UnionType):
        return (key and key.allowed) or " or ".join(accepted(part, key) for part in get_args(hint))
    if get_origin(hint) is Literal:
        return " or ".join(choices(hint))
    if hint is LinearSchedule:
        return "a number, or a mapping of first, last, begin and end"
    return {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        list[float]: (key and key.allowed) or "a list of numbers, such as [0.0, 1.0]",
        list[str]: "a list, such as [a, b]",
    }.get(hint) or f"a mapping of keys ({', '.join(fields_of(hint))})"


def shown(value: Any) -> str:
    """A value as an error names it."""
    if isinstance(value, LinearSchedule):
        return str(value)
    return "no value" if value is None else repr(value)


def validate(config: Any) -> None:
    """Check every value of a config object, and the rules that concern several keys.

    A section or a whole config may have a method `rules(prefix)` that yields (key, value, whether it is allowed, what
    is allowed); prefix is the section's own key.

    Raises:
        UserError: one line that names the first wrong key, its value and what is allowed.
    """
    found = list(walk(config))
    for path, field, value in found:
        if not field.is_section:
            try:
                check(field, value)
            except ValueProblem as problem:
                raise UserError(f"{path} {problem}") from None
    for path, section in [("", config), *((path, value) for path, field, value in found if field.is_section)]:
        if hasattr(section, "rules"):
            hold(section.rules(path))


def hold(rules: Iterable[Rule]) -> None:
    """Check rules.

    Raises:
        UserError: see `validate`.
    """
    for key, value, allowed, what in rules:
        if not allowed:
            raise UserError(f"{key} must be {what}, not {shown(value)}")


__all__ = ["Component", "Rule", "ValueProblem", "accepted", "check", "hold", "is_supported", "shown", "validate"]
