"""The registry of components: carv3d's own, those of other packages, and all that can be imported as `package.Name`.

A package announces components by entry points of the group `carv3d.<kind>`, in its pyproject.toml for instance

    [project.entry-points."carv3d.scene"]
    spheres = "mypackage.spheres:Spheres"

Without an entry point use the full name: `scene.type=mypackage.spheres.Spheres`. A component is imported when it is
needed. This file imports no torch.
"""

from __future__ import annotations

import difflib
import importlib
import re
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from carv3d.errors import UserError

_OWN: dict[str, dict[str, str]] = {
    "teacher": {
        "diffusers": "carv3d.teachers.config:DiffusersTeacherConfig",
        "exact": "carv3d.teachers.config:ExactTeacherConfig",
    },
    "objective": {
        "sds": "carv3d.objectives.sds:Sds",
        "csd": "carv3d.objectives.csd:Csd",
        "vsd": "carv3d.objectives.vsd:Vsd",
    },
    "scene": {
        "voxel_grid": "carv3d.scenes.config:VoxelGridConfig",
        "hash_grid": "carv3d.scenes.config:HashGridConfig",
        "gaussians": "carv3d.scenes.config:GaussiansConfig",
    },
    "renderer": {
        "auto": "carv3d.renderers.config:RendererConfig",
    },
    "cameras": {"uniform": "carv3d.cameras.config:CameraConfig"},
    "coupling": {
        "independent": "carv3d.sampling:independent",
        "antithetic": "carv3d.sampling:antithetic",
        "zero_sum": "carv3d.sampling:zero_sum",
    },
    "proposal": {"uniform": "carv3d.sampling:uniform", "importance": "carv3d.sampling:importance"},
}
"""By kind and name: module and attribute."""

KINDS = tuple(_OWN)
_added: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}


def register(kind: str, name: str, component: Any) -> None:
    """Add a component for the rest of this process, as a notebook does.

    Raises:
        ValueError: the kind is not one of `KINDS`, or the name is carv3d's own.
    """
    if kind not in KINDS:
        raise ValueError(f"there is no kind of component {kind!r}: {', '.join(KINDS)} are the kinds")
    if name in _OWN[kind]:
        raise ValueError(f"the {kind} {name!r} is carv3d's own: choose another name")
    _added[kind][name] = component


def names(kind: str) -> list[str]:
    """The short names of a kind, carv3d's own first. Imports nothing."""
    return [*_OWN[kind], *sorted({*_added[kind], *_announced(kind)} - {*_OWN[kind]})]


def find(kind: str, name: str) -> Any:
    """The component of a name: a short one, or `package.Name`.

    Raises:
        UserError: an unknown name, a name that two packages claim, or a component that cannot be imported.
    """
    claims = _announced(kind).get(name, ())
    if len(claims) + (name in _OWN[kind]) > 1:
        packages = sorted({_package(entry) for entry in claims} | ({"carv3d"} if name in _OWN[kind] else set()))
        raise UserError(
            f"the {kind} {name!r} is claimed by {' and '.join(packages)}: uninstall one, or write its full name, "
            f"such as {claims[0].value.replace(':', '.')}"
        )
    if name in _added[kind]:
        return _added[kind][name]
    if name in _OWN[kind]:
        return load(_OWN[kind][name])
    if claims:
        return _imported(kind, name, f"of the package {_package(claims[0])} ", claims[0].value)
    if re.fullmatch(r"\w+(\.\w+)+", name):
        return _imported(kind, name, "", name)
    raise UserError(unknown(kind, name))


def unknown(kind: str, name: object) -> str:
    """The message about an unknown name, with a suggestion."""
    near = difflib.get_close_matches(str(name), names(kind), 1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown {kind} {name!r}; {hint}known are {', '.join(names(kind))}, and package.Name of a plug-in"


def own(kind: str, name: str) -> Any:
    """A component of carv3d itself, whatever other packages claim its name."""
    return load(_OWN[kind][name])


def is_function(kind: str, name: str) -> tuple[bool, str]:
    """Whether a name leads to a function, and what is allowed.

    Raises:
        UserError: a plug-in that cannot be imported, or a name that two packages claim.
    """
    if name in names(kind) or "." in name:
        return callable(find(kind, name)), f"a function, see docs/how-to/plugins.md: that of {name} is none"
    near = difflib.get_close_matches(name, names(kind), 1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return False, f"{' or '.join(names(kind))}, or package.Name of a plug-in{hint}"


def load(place: str) -> Any:
    """The object at `module:attribute` or `module.attribute`."""
    module, colon, attribute = place.partition(":")
    if not colon:
        module, _, attribute = place.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def _imported(kind: str, name: str, origin: str, place: str) -> Any:
    try:
        return load(place)
    except Exception as error:  # the import of a plug-in can raise any error
        reason = " ".join(str(error).split()) or "no message"
        hint = ""
        if isinstance(error, ModuleNotFoundError) and error.name == place.partition(".")[0]:
            hint = "; install it, or put its folder on PYTHONPATH"
        raise UserError(
            f"the {kind} {name!r} {origin}cannot be imported: {type(error).__name__}: {reason[:200]}{hint}"
        ) from error


@cache
def _announced(kind: str) -> dict[str, tuple[EntryPoint, ...]]:
    """Entry points of a kind by name; a name may be claimed more than once."""
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for entry in entry_points(group=f"carv3d.{kind}"):
        if entry.value not in {other.value for other in found.get(entry.name, ())}:
            found[entry.name] = (*found.get(entry.name, ()), entry)
    return found


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else entry.value.partition(".")[0]
