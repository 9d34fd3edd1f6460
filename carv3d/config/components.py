"""The config of a component: the dataclass that the registry has under its name. Imports no torch."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields, is_dataclass, make_dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

from carv3d import registry
from carv3d.config.keys import fields_of
from carv3d.config.linear_schedule import LinearSchedule
from carv3d.config.values import is_supported
from carv3d.errors import UserError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Context:
    """What a component may need to be built besides its own keys.

    Attributes:
        config: the whole config.
        device: of the run.
        rng: the generator of the component's start; on the device.
        fresh: False if a checkpoint will be loaded into the component: it then reads no file to start from.
    """

    config: Any
    device: torch.device
    rng: torch.Generator
    fresh: bool = True


class ComponentConfig(Protocol):
    """A dataclass whose fields are the keys of a component, and which makes the component."""

    type: Any

    def build(self, context: Context) -> Any:
        """Make the component."""
        ...


def component(kind: str, name: str) -> Any:
    """The default of a section whose `type` names a component: that of carv3d's own component of this name."""
    return field(default_factory=lambda: _with_type(registry.own(kind, name), kind, name)())


def config_of(kind: str, name: str) -> type[Any]:
    """The config of a component: a dataclass with a field `type` that holds the component's name.

    Raises:
        UserError: see `carv3d.registry.find`; or the component is no dataclass whose fields all have defaults.
    """
    return _with_type(registry.find(kind, name), kind, name)


@cache
def _with_type(of: Any, kind: str, name: str) -> type[Any]:
    said = f"the {kind} {name!r}"
    if not (isinstance(of, type) and is_dataclass(of)):
        raise UserError(f"{said} is no dataclass: its fields are the keys of the config, see docs/how-to/plugins.md")
    if of.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise UserError(f"{said} is a frozen dataclass: remove frozen, because keys are set one by one")
    for f in fields(of):
        if f.init and f.default is MISSING and f.default_factory is MISSING:
            raise UserError(f"{said}: its field {f.name!r} has no default")
    _check_kind(of, kind, said)
    try:
        found = fields_of(of)
    except Exception as error:  # a name that exists for type checkers only
        raise UserError(f"{said}: the type of a field cannot be read ({error})") from error
    for key, one in found.items():
        if not (is_supported(one.hint) or one.hint is LinearSchedule or is_dataclass(one.hint)):
            shown = one.hint.__name__ if isinstance(one.hint, type) else one.hint
            raise UserError(
                f"{said}: its field {key!r} is a {shown}; a key can be int, float, bool, str, Literal[...], "
                "list[float], list[str], LinearSchedule or another dataclass"
            )
    if "type" in found:
        return of
    made = make_dataclass(of.__name__, [("type", str, field(default=name))], bases=(of,))
    made.__doc__, made.__module__ = of.__doc__, of.__module__
    return made


def _check_kind(of: type[Any], kind: str, said: str) -> None:
    if kind == "objective":
        from carv3d.objectives.base import Objective

        if not issubclass(of, Objective):
            raise UserError(f"{said} is no subclass of carv3d.objectives.Objective, see docs/how-to/plugins.md")
        if missing := sorted(getattr(of, "__abstractmethods__", ())):
            raise UserError(f"{said} has no method {missing[0]}, see docs/how-to/plugins.md")
    elif not callable(getattr(of, "build", None)):
        raise UserError(f"{said} has no method build(context), see docs/how-to/plugins.md")
