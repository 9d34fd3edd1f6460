"""Reading configs: YAML and `key=value` over the defaults of `schema`, with errors that say what was meant.

    config = load(find_config("shapes"), ["prompt=a red chair", "guidance.resamples=8"])
    validate(config)

The dataclasses of `schema` are all there is: their fields are the keys, their annotations the types. Nothing
here imports torch: `carv3d config` and an error in a config come at once.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from carv3d.config import schema
from carv3d.config.yaml_loader import line_numbers, parse, problem
from carv3d.errors import UserError


@dataclass(frozen=True)
class _Layer:
    """Values as they were written, and where, so that an error can point there."""

    values: Mapping[str, Any]
    name: str
    text: str = ""  # of a YAML file

    def where(self, path: str) -> str:
        line = line_numbers(self.text).get(path) if self.text else None
        return f"{self.name}:{line}" if line else self.name


def load(
    source: Path | str | None, overrides: Sequence[str] = (), *, base: Mapping[str, Any] | None = None
) -> schema.Config:
    """The defaults, then `base`, then a YAML file, then overrides, each changing only what it names.

    A `Ramp` may be written as one number, which then holds for the whole run; written as a mapping, what it
    leaves out stays as it was, as in any other section. When a later layer changes the `type` of a section,
    what earlier ones changed in it is kept where the new kind has that key too.

    Args:
        source: a YAML file, or None.
        overrides: `key=value` with dotted keys and YAML values. Text, such as a prompt, needs no quotes.
        base: nested values, for instance those of another config.

    Raises:
        UserError: a file that is missing or no YAML, an unknown key, a value of the wrong type, a bad choice.
    """
    config = schema.Config()
    layers = [] if base is None else [_Layer(base, "base config")]
    layers += [] if source is None else [_read(Path(source))]
    for layer in layers:
        _choose_kinds(config, layer)
        _apply(config, layer.values, "", config, layer)
    # Kinds first, because a key's type decides how an override's text is read.
    parsed = [_split(override) for override in overrides]
    for keys, text in parsed:
        if keys[0] in schema.KINDS:
            _choose_kinds(config, _override(keys, text, config))
    for keys, text in parsed:
        layer = _override(keys, text, config)
        _apply(config, layer.values, "", config, layer)
    return config


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
        values = parse(text)
    except OSError as error:
        raise UserError(f"cannot read config {name}: {(error.strerror or str(error)).lower()}") from None
    except UnicodeDecodeError:
        raise UserError(f"{name} is not a text file: give a YAML config") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{name}:{mark.line + 1}" if mark else name
        raise UserError(f"{place}: not valid YAML: {problem(error)}") from None
    if not isinstance(values, dict | None):
        raise UserError(f"{name}: a config is a mapping of keys to values, such as 'seed: 1'")
    return _Layer(values or {}, name, text)


def _split(override: str) -> tuple[list[str], str]:
    path, equals, text = override.partition("=")
    if not equals or not path.strip():
        raise UserError(f"{override!r} is not key=value; write for instance guidance.resamples=8")
    return path.strip().split("."), text


def _override(keys: list[str], text: str, config: schema.Config) -> _Layer:
    path = ".".join(keys)
    value: Any = text
    # A prompt is text whatever YAML would make of it, unless it is in quotes.
    if _type_of(path, config) is not str or text.startswith(("'", '"')):
        try:
            value = parse(text)
        except yaml.YAMLError as error:
            raise UserError(f"{path}={text}: the value is not valid YAML: {problem(error)}") from None
    for key in reversed(keys):
        value = {key: value}
    return _Layer(value, f"{path}={text}")


def _choose_kinds(config: schema.Config, layer: _Layer) -> None:
    """Give the sections the kinds that the layer names, keeping what was changed and both kinds have."""
    for name, kinds in schema.KINDS.items():
        section = layer.values.get(name)
        if not isinstance(section, dict) or "type" not in section:
            continue
        kind, old = section["type"], getattr(config, name)
        if not isinstance(kind, str) or kind not in kinds:
            raise _wrong_value(f"{name}.type", kind, Literal[tuple(kinds)], layer)
        if kind != old.type:
            new, default = kinds[kind](), type(old)()
            for key in _hints(type(old)).keys() & _hints(type(new)).keys() - {"type"}:
                if getattr(old, key) != getattr(default, key):
                    setattr(new, key, getattr(old, key))
            setattr(config, name, new)


# ------------------------------------------------------------------------------------------- values


def _apply(section: Any, values: Mapping[str, Any], prefix: str, config: schema.Config, layer: _Layer) -> None:
    """Set the section's fields to a layer's values, each checked."""
    hints = _hints(type(section))
    for key, value in values.items():
        path = f"{prefix}{key}"
        if key not in hints:
            raise _unknown_key(path, list(hints), config, layer)
        old = getattr(section, key)
        if isinstance(old, schema.Ramp) and _is_number(value):
            setattr(section, key, schema.constant(_converted(path, value, float, layer)))
        elif is_dataclass(old):
            if not isinstance(value, dict):
                raise _wrong_value(path, value, type(old), layer)
            _apply(old, value, f"{path}.", config, layer)
        elif isinstance(value, dict) and value:
            raise _unknown_key(f"{path}.{next(iter(value))}", [], config, layer)
        elif not (key == "type" and prefix[:-1] in schema.KINDS):  # which is chosen already
            setattr(section, key, _converted(path, value, hints[key], layer))


def _converted(path: str, value: Any, hint: Any, layer: _Layer) -> Any:
    if get_origin(hint) is list and isinstance(value, list):
        try:
            return [_converted(path, item, get_args(hint)[0], layer) for item in value]
        except UserError:
            raise _wrong_value(path, value, hint, layer) from None
    if hint is float and _is_number(value):
        try:
            return float(value)
        except OverflowError:
            raise _wrong_value(path, value, hint, layer) from None
    if get_origin(hint) is Literal:
        fits = isinstance(value, str) and value in get_args(hint)
    elif hint in (str, bool, int):
        fits = type(value) is hint
    else:
        fits = hint is Any
    if not fits:
        raise _wrong_value(path, value, hint, layer)
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


# ------------------------------------------------------------------------------------------- errors


def _unknown_key(path: str, siblings: list[str], config: schema.Config, layer: _Layer) -> UserError:
    """Suggests, in this order: the same key elsewhere, a near one beside it, a near one elsewhere."""
    prefix, _, key = path.rpartition(".")
    parent, where = _type_of(prefix, config), layer.where(path)
    if _type_of(path, config) is not None:
        return UserError(f"{where}: {path!r} in YAML is one key inside the other, not one with a dot")
    for kind, of in schema.KINDS.get(prefix, {}).items():
        if key in _hints(of):
            used = getattr(config, prefix).type
            return UserError(f"{where}: {path!r} is of {prefix}.type={kind}, but the type is {used}")
    leaf_of = {full: full.rpartition(".")[2] for full in _paths(config)}
    near = [full for full, leaf in leaf_of.items() if leaf == key][:3]
    if not near:
        beside = difflib.get_close_matches(key, siblings, 1)
        near = [f"{prefix}.{sibling}" if prefix else sibling for sibling in beside]
    near = near or difflib.get_close_matches(path, list(leaf_of), 1)
    if not near:
        leaves = difflib.get_close_matches(key, set(leaf_of.values()), 1)
        near = [full for full, leaf in leaf_of.items() if leaf in leaves][:3]
    if near:
        hint = f"did you mean {' or '.join(map(repr, near))}?"
    elif parent is not None and not is_dataclass(parent):
        hint = f"{prefix!r} takes {_accepted(parent)}"
    else:
        hint = "`carv3d config` lists all keys"
    return UserError(f"{where}: unknown key {path!r}; {hint}")


def _wrong_value(path: str, value: Any, hint: Any, layer: _Layer) -> UserError:
    shown = "no value" if value is None else repr(value)
    quotes = "; put it in quotes" if hint is str and value is not None else ""
    return UserError(f"{layer.where(path)}: {path} takes {_accepted(hint)}, not {shown}{quotes}")


def _accepted(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(map(str, get_args(hint)))
    if hint is schema.Ramp:
        return "a number, or a mapping of first, last, begin and end"
    if is_dataclass(hint):
        return f"a mapping of keys ({', '.join(f.name for f in fields(hint))})"
    return {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        list[float]: "a list of numbers, such as [0.0, 1.0]",
        list[str]: "a list, such as [a, b]",
    }.get(hint, "another kind of value")


# ------------------------------------------------------------------------------------------- schema


def _hints(of: type) -> dict[str, Any]:
    return get_type_hints(of)


def _paths(section: Any, prefix: str = "") -> Iterator[str]:
    """Every dotted key of a config."""
    for key in _hints(type(section)):
        yield f"{prefix}{key}"
        if is_dataclass(value := getattr(section, key)):
            yield from _paths(value, f"{prefix}{key}.")


def _type_of(path: str, config: schema.Config) -> Any:
    """The type of a dotted key, or None if there is no such key."""
    section: Any = config
    hint: Any = None
    for key in path.split("."):
        if not is_dataclass(section) or key not in _hints(type(section)):
            return None
        hint = _hints(type(section))[key]
        section = getattr(section, key)
        hint = type(section) if is_dataclass(section) else hint
    return hint
