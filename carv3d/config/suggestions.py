"""What was probably meant by a key or a name that does not exist."""

from __future__ import annotations

import difflib
from operator import attrgetter
from typing import Any

from carv3d import registry
from carv3d.config.components import config_of
from carv3d.config.files import Layer
from carv3d.config.keys import Field, fields_of, walk
from carv3d.config.linear_schedule import LinearSchedule
from carv3d.config.values import accepted, shown
from carv3d.errors import UserError

ALL_KEYS = "`carv3d config` lists all keys"


def unknown_type(kind: str, name: Any) -> str:
    """What is wrong with the name of a component, as the rest of a sentence; empty if nothing is."""
    known = registry.names(kind)
    if isinstance(name, str) and (name in known or "." in name):
        return ""
    near = difflib.get_close_matches(str(name), known, 1)
    return f"takes {' or '.join(known)}, not {shown(name)}" + (f"; did you mean {near[0]!r}?" if near else "")


def unknown_key(path: str, config: Any, layer: Layer) -> UserError:
    """The error of a key that does not exist, with the key that was probably meant.

    Args:
        path: the dotted key.
        config: an object of the whole config, with the types in use.
        layer: the one that has the key.
    """
    prefix, _, key = path.rpartition(".")
    known = paths(config)
    where, parent = layer.where(path), known.get(prefix)
    if path in known:
        return UserError(f"{where}: {path!r} in YAML is one key inside the other, not one with a dot")
    beside = [name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == prefix]
    for name, field in known.items():
        if field.key.formerly == key and name.rpartition(".")[0] == prefix:
            return UserError(f"{where}: unknown key {path!r}: it is called {name!r} now")
    kind = parent.component.kind if parent and parent.component else ""
    for other in registry.names(kind) if kind else ():
        try:
            has = key in fields_of(config_of(kind, other))
        except UserError:  # a plug-in that cannot be imported
            continue
        if has:
            used = attrgetter(prefix)(config).type
            return UserError(f"{where}: {path!r} is of {prefix}.type={other}, but the type is {used}")
    hint = nearest(path, beside, config)
    if not hint and parent and not parent.is_section and parent.hint is not LinearSchedule:
        hint = f"{prefix!r} takes {accepted(parent.hint, parent.key)}"
    return UserError(f"{where}: unknown key {path!r}; {hint or ALL_KEYS}")


def nearest(path: str, siblings: list[str], config: Any) -> str:
    """A suggestion, in this order: the same key elsewhere, a similar one beside it, a similar one elsewhere."""
    prefix, _, key = path.rpartition(".")
    leaf_of = {full: full.rpartition(".")[2] for full in paths(config)}
    near = [full for full, leaf in leaf_of.items() if leaf == key][:3]
    if not near:
        beside = difflib.get_close_matches(key, siblings, 1)
        near = [f"{prefix}.{sibling}" if prefix else sibling for sibling in beside]
    near = near or difflib.get_close_matches(path, list(leaf_of), 1)
    if not near:
        leaves = difflib.get_close_matches(key, set(leaf_of.values()), 1)
        near = [full for full, leaf in leaf_of.items() if leaf in leaves][:3]
    return f"did you mean {' or '.join(map(repr, near))}?" if near else ""


def paths(config: Any) -> dict[str, Field]:
    """Every dotted key of a config object with its field, those of a schedule's parts included."""
    found: dict[str, Field] = {}
    for path, field, _ in walk(config):
        found[path] = field
        if field.hint is LinearSchedule:
            found |= {f"{path}.{part}": one for part, one in fields_of(LinearSchedule).items()}
    return found
