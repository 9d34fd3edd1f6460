"""The section of a component's name: the dataclass whose fields are its keys."""

from __future__ import annotations

from dataclasses import MISSING, field, fields, is_dataclass, make_dataclass
from functools import cache
from typing import Any, Literal, get_origin, get_type_hints

from carv3d import registry
from carv3d.errors import UserError


def section(kind: str, name: str) -> type[Any]:
    """The section of a component, with a field `type` that holds its name.

    Raises:
        UserError: see `carv3d.registry.find`; or the component is no dataclass whose fields all have defaults.
    """
    return _with_type(registry.find(kind, name), kind, name)


@cache
def _with_type(of: Any, kind: str, name: str) -> type[Any]:
    said = f"the {kind} {name!r}"
    if not (isinstance(of, type) and is_dataclass(of)):
        raise UserError(f"{said} is no dataclass: its fields are the keys of the config, see docs/plugins.md")
    if of.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise UserError(f"{said} is a frozen dataclass: leave frozen out, its keys are set one by one")
    own = {f.name: f for f in fields(of)}
    for key, f in own.items():
        if f.init and f.default is MISSING and f.default_factory is MISSING:
            raise UserError(f"{said}: its field {key!r} has no default")
    _check_kind(of, kind, said)
    try:
        hints = get_type_hints(of)
    except Exception as error:  # a name that exists for type checkers only
        raise UserError(f"{said}: the type of a field cannot be read ({error})") from error
    for key, f in own.items():
        if f.init and not _is_supported(hints[key]):
            shown = hints[key].__name__ if isinstance(hints[key], type) else hints[key]
            raise UserError(
                f"{said}: its field {key!r} is a {shown}; a key can be int, float, bool, str, Literal[...], "
                "list[float], list[str], Ramp or another dataclass"
            )
    if "type" in own:
        return of
    doc, module = of.__doc__, of.__module__
    made = make_dataclass(of.__name__, [("type", str, field(default=name))], bases=(of,))
    made.__doc__, made.__module__ = doc, module
    return made


def _check_kind(of: type[Any], kind: str, said: str) -> None:
    if kind == "objective":
        from carv3d.objectives.base import Objective

        if not issubclass(of, Objective):
            raise UserError(f"{said} is no subclass of carv3d.objectives.Objective, see docs/plugins.md")
        if missing := sorted(getattr(of, "__abstractmethods__", ())):
            raise UserError(f"{said} has no method {missing[0]}, see docs/plugins.md")
    elif not callable(getattr(of, "build", None)):
        raise UserError(f"{said} has no method build(context), see docs/plugins.md")


def _is_supported(hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return True
    return hint in (int, float, bool, str, list[float], list[str], Any) or is_dataclass(hint)
