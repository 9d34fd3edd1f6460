"""Reading configs: YAML and `key=value` over the defaults of `schema`, with errors that say what was meant.

    config = load(find_config("shapes"), ["prompt=a red chair", "guidance.resamples=8"])
    validate(config)

OmegaConf merges and converts; this module checks every key first, so that a mistyped one never goes
unnoticed. It does not import torch: `carv3d config` and an error in a config come at once.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from carv3d.config import schema
from carv3d.errors import UserError

Kinds = dict[str, str]
"""The `type` of each section that has kinds, such as {"scene": "voxel_grid"}."""


@dataclass(frozen=True)
class _Layer:
    """Values as they were written, and where, so that an error can point there."""

    values: dict[str, Any]
    name: str
    text: str = ""  # of a YAML file

    def where(self, path: str) -> str:
        line = _lines(self.text).get(path) if self.text else None
        return f"{self.name}:{line}" if line else self.name


def load(
    source: Path | str | None, overrides: Sequence[str] = (), *, base: Mapping[str, Any] | None = None
) -> schema.Config:
    """The defaults, then `base`, then a YAML file, then overrides, each changing only what it names.

    A `Ramp` may be written as one number, which then holds for the whole run; written as a mapping, what it
    leaves out stays as it was, as in any other section. When a later layer changes the `type` of a section,
    what earlier ones said about it is kept only where the new kind has that key.

    Args:
        source: a YAML file, or None.
        overrides: `key=value` with dotted keys and YAML values. Text, such as a prompt, needs no quotes.
        base: nested values, for instance those of another config.

    Raises:
        UserError: a file that is missing or no YAML, an unknown key, a value of the wrong type, a bad choice.
    """
    groups = []
    if base is not None:
        groups.append([_Layer(dict(base), "base config")])
    if source is not None:
        groups.append([_read(Path(source))])
    parsed = [_split(override) for override in overrides]

    kinds = {name: str(schema.Config().__dict__[name].type) for name in schema.KINDS}
    checked: list[tuple[dict[str, Any], _Layer]] = []
    for group in groups:
        kinds = kinds | _kinds(group)
        checked += [(_checked(layer, kinds), layer) for layer in group]
    # An override's key decides how its value is read, and that needs the kinds.
    kinds = kinds | _kinds([_override(keys, text, None) for keys, text in parsed])
    for keys, text in parsed:
        layer = _override(keys, text, kinds)
        checked.append((_checked(layer, kinds), layer))

    merged = OmegaConf.structured(schema.Config(**{name: _kind(name, kinds)() for name in kinds}))
    for values, layer in checked:
        values = _fitted(values, kinds)
        try:
            merged = OmegaConf.merge(merged, values)
        except OmegaConfBaseException as error:
            path = re.sub(r"\[.*", "", error.full_key or "")
            raise _wrong_value(path, _get(values, path), _hint(path, kinds), layer) from None
    try:
        return cast(schema.Config, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        # "???" and interpolations are found out only here.
        reason = str(error.msg or error).splitlines()[0].rstrip(".")
        raise UserError(f"{error.full_key}: {reason}; give it a plain value") from None


def find_config(name: str) -> Path:
    """The file that a name means: a path, or `shapes`, `shapes.yaml`, `configs/shapes.yaml`.

    Looks in the current directory, in its `configs`, and in the configs that come with carv3d.

    Raises:
        UserError: no such config.
    """
    package = Path(__file__).resolve().parents[1]
    # In a wheel the configs lie inside the package, in a clone beside it.
    shipped = package.parent / "configs" if (package.parent / "setup.py").is_file() else package / "configs"
    folders = [Path(), Path("configs"), shipped]
    wanted = Path(name).expanduser()
    names = [wanted] if wanted.suffix in (".yaml", ".yml") else [wanted, Path(f"{wanted}.yaml")]
    if wanted.parts[:1] == ("configs",):
        folders.append(shipped.parent)
    for folder in folders:
        for candidate in names:
            if name and (folder / candidate).is_file():
                return folder / candidate
    found = ((path, folder) for folder in folders[1:3] for path in folder.rglob("*.yaml"))
    known = sorted({path.relative_to(folder).with_suffix("").as_posix() for path, folder in found})
    near = difflib.get_close_matches(wanted.stem, known, 1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UserError(f"no config {name!r}: {hint}give a file or one of: {', '.join(known) or 'none found'}")


# ---------------------------------------------------------------------------------------------- layers


def _read(path: Path) -> _Layer:
    name = os.path.relpath(path) if path.is_absolute() and path.is_relative_to(Path.cwd()) else str(path)
    try:
        text = path.read_text(encoding="utf-8")
        values = OmegaConf.to_container(OmegaConf.create(text)) if text.strip() else {}
    except OSError as error:
        raise UserError(f"cannot read config {name}: {(error.strerror or str(error)).lower()}") from None
    except UnicodeDecodeError:
        raise UserError(f"{name} is not a text file: give a YAML config") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{name}:{mark.line + 1}" if mark else name
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be parsed"
        raise UserError(f"{place}: not valid YAML: {problem}") from None
    if not isinstance(values, dict):
        raise UserError(f"{name}: a config is a mapping of keys to values, not a list")
    return _Layer(cast(dict[str, Any], values), name, text)


def _split(override: str) -> tuple[list[str], str]:
    path, equals, text = override.partition("=")
    if not equals or not path.strip():
        raise UserError(f"{override!r} is not key=value; write for instance guidance.resamples=8")
    return path.strip().split("."), text


def _override(keys: list[str], text: str, kinds: Kinds | None) -> _Layer:
    name = f"{'.'.join(keys)}={text}"
    value: Any
    if kinds and _hint(".".join(keys), kinds) is str and not text.startswith(("'", '"')):
        value = escape(text)
    else:
        try:
            value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]  # type: ignore[call-overload,index]
        except yaml.YAMLError as error:
            if kinds:
                problem = getattr(error, "problem", None) or "cannot be parsed"
                raise UserError(f"{name}: the value is not valid YAML: {problem}") from None
            value = None
    for key in reversed(keys):
        value = {key: value}
    return _Layer(value, name)


def escape(text: str) -> str:
    """The text written so that OmegaConf takes `${` in it as it stands."""
    return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", text)


def _kinds(group: Sequence[_Layer]) -> Kinds:
    """The kinds that a group of layers names; the last one counts."""
    named = {}
    for layer in group:
        for name, kinds in schema.KINDS.items():
            section = layer.values.get(name)
            if isinstance(section, dict) and "type" in section:
                if not isinstance(section["type"], str) or section["type"] not in kinds:
                    raise _wrong_value(f"{name}.type", section["type"], Literal[tuple(kinds)], layer)
                named[name] = section["type"]
    return named


def _fitted(values: dict[str, Any], kinds: Kinds) -> dict[str, Any]:
    """Without the keys that only another kind of a section has."""
    fitted = dict(values)
    for name in kinds.keys() & values.keys():
        known = _hints(_kind(name, kinds))
        fitted[name] = {key: v for key, v in values[name].items() if key in known} | {"type": kinds[name]}
    return fitted


# ---------------------------------------------------------------------------------------------- checks


def _checked(layer: _Layer, kinds: Kinds) -> dict[str, Any]:
    """The layer's values with every key known and every Ramp written as a mapping."""
    return _checked_section(layer.values, schema.Config, "", layer, kinds)


def _checked_section(
    values: dict[str, Any], of: type, prefix: str, layer: _Layer, kinds: Kinds
) -> dict[str, Any]:
    known = _keys(of, kinds)
    result = {}
    for key, value in values.items():
        path = f"{prefix}{key}"
        if key not in known:
            raise _unknown_key(path, list(known), layer, kinds)
        hint = known[key]
        if hint is schema.Ramp and isinstance(value, (int, float)) and not isinstance(value, bool):
            value = {"first": value, "last": value, "begin": 0.0, "end": 1.0}
        if is_dataclass(hint):
            if not isinstance(value, dict):
                raise _wrong_value(path, value, hint, layer)
            value = _checked_section(value, cast(type, hint), f"{path}.", layer, kinds)
        elif isinstance(value, dict) and value:
            raise _unknown_key(f"{path}.{next(iter(value))}", [], layer, kinds)
        elif hint is str and isinstance(value, bool):
            raise _wrong_value(path, value, hint, layer)
        result[key] = value
    return result


def _unknown_key(path: str, siblings: list[str], layer: _Layer, kinds: Kinds) -> UserError:
    """Suggests, in this order: the same key elsewhere, a near one beside it, a near one elsewhere."""
    prefix, _, key = path.rpartition(".")
    prefix, where = f"{prefix}." if prefix else "", layer.where(path)
    if _hint(path, kinds) is not None:
        return UserError(f"{where}: {path!r} in YAML is one key inside the other, not one with a dot")
    for name, of in schema.KINDS.items():
        for kind, section in of.items():
            if prefix == f"{name}." and key in _hints(section):
                return UserError(f"{where}: {path!r} is of {name}.type={kind}, but the type is {kinds[name]}")
    leaf_of = {full: full.rpartition(".")[2] for full in _paths(kinds)}
    near = [full for full, leaf in leaf_of.items() if leaf == key][:3]
    near = near or [prefix + sibling for sibling in difflib.get_close_matches(key, siblings, 1)]
    near = near or difflib.get_close_matches(path, list(leaf_of), 1)
    if not near:
        leaves = difflib.get_close_matches(key, set(leaf_of.values()), 1)
        near = [full for full, leaf in leaf_of.items() if leaf in leaves][:3]
    parent = _hint(prefix[:-1], kinds)
    if near:
        hint = f"did you mean {' or '.join(map(repr, near))}?"
    elif parent is not None and not is_dataclass(parent):
        hint = f"{prefix[:-1]!r} takes {_accepted(parent)}"
    else:
        hint = "`carv3d config` lists all keys"
    return UserError(f"{where}: unknown key {path!r}; {hint}")


def _wrong_value(path: str, value: Any, hint: Any, layer: _Layer) -> UserError:
    shown = "no value" if value is None else repr(value)
    quotes = "; put it in quotes" if hint is str and isinstance(value, bool) else ""
    return UserError(f"{layer.where(path)}: {path} takes {_accepted(hint)}, not {shown}{quotes}")


def _accepted(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(map(str, get_args(hint)))
    if hint is schema.Ramp:
        return "a number, or a mapping of first, last, begin and end"
    if is_dataclass(hint):
        return f"a mapping of keys ({', '.join(f.name for f in fields(hint))})"
    names = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        list[float]: "a list of numbers, such as [0.0, 1.0]",
        list[str]: "a list, such as [a, b]",
    }
    return names.get(hint, "another kind of value")


# ---------------------------------------------------------------------------------------------- schema


@cache
def _hints(of: type) -> dict[str, Any]:
    return get_type_hints(of)


def _keys(of: type, kinds: Kinds) -> dict[str, Any]:
    """The keys of a section and their types; sections that have kinds are of the given ones."""
    return _hints(of) | ({name: _kind(name, kinds) for name in kinds} if of is schema.Config else {})


def _kind(name: str, kinds: Kinds) -> type:
    return schema.KINDS[name][kinds[name]]


def _paths(kinds: Kinds) -> Iterator[str]:
    """Every dotted key of a config of these kinds."""

    def walk(of: type, prefix: str) -> Iterator[str]:
        for key, hint in _keys(of, kinds).items():
            yield prefix + key
            if is_dataclass(hint):
                yield from walk(cast(type, hint), f"{prefix}{key}.")

    return walk(schema.Config, "")


def _hint(path: str, kinds: Kinds) -> Any:
    """The type of a dotted key, or None if there is no such key."""
    of: Any = schema.Config
    for key in path.split("."):
        if not is_dataclass(of):
            return None
        of = _keys(cast(type, of), kinds).get(key)
    return of


def _get(values: Any, path: str) -> Any:
    for key in path.split("."):
        values = values[key] if isinstance(values, dict) and key in values else None
    return values


@cache
def _lines(text: str) -> dict[str, int]:
    """The line of every dotted key in a YAML text."""
    lines: dict[str, int] = {}

    def walk(node: yaml.Node | None, prefix: str) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                path = f"{prefix}{key.value}"
                lines[path] = key.start_mark.line + 1
                walk(value, f"{path}.")

    walk(yaml.compose(text, Loader=yaml.SafeLoader), "")
    return lines
