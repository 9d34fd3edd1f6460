"""Reading configs: YAML and `key=value` over the defaults of `schema`, with errors that say what was meant.

    config = load(find_config("shapes"), ["prompt=a red chair", "guidance.resamples=8"])
    validate(config)

The dataclasses of `schema` are all there is: their fields are the keys, their annotations the types. OmegaConf
merges the layers and resolves interpolations such as `${seed}`; but it converts silently (`no` to the text "False"),
so that every key and value is checked here first. Nothing here imports torch: `carv3d config` and an error in a
config come at once.
"""

from __future__ import annotations

import difflib
import os
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints, overload

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import GrammarParseError, InterpolationKeyError, OmegaConfBaseException

from carv3d import registry
from carv3d.config import schema
from carv3d.config.kinds import section
from carv3d.config.ramp import Ramp
from carv3d.config.yaml_loader import line_numbers, parse, problem
from carv3d.errors import UserError


@dataclass(frozen=True)
class _Layer:
    """Values as they were written, and where, so that an error can point there."""

    values: Mapping[str, Any]
    name: str
    text: str = ""  # of a YAML file

    def where(self, path: str) -> str:
        lines = line_numbers(self.text) if self.text else {}
        line = lines.get(path) or lines.get(path.rpartition(".")[0])  # a part of a Ramp that is written as one value
        return f"{self.name}:{line}" if line else self.name

    def says(self, path: str) -> bool:
        """Whether it has a value for the key, or one value for the Ramp that the key is a part of."""
        values: Any = self.values
        for key in path.split("."):
            if not isinstance(values, dict):
                return True
            if key not in values:
                return False
            values = values[key]
        return True


_C = TypeVar("_C")


@overload
def load(
    source: Path | str | None, overrides: Sequence[str] = (), *, base: Mapping[str, Any] | None = None
) -> schema.Config: ...


@overload
def load(
    source: Path | str | None, overrides: Sequence[str] = (), *, base: Mapping[str, Any] | None = None, of: type[_C]
) -> _C: ...


def load(
    source: Path | str | None,
    overrides: Sequence[str] = (),
    *,
    base: Mapping[str, Any] | None = None,
    of: type[Any] = schema.Config,
) -> Any:
    r"""The defaults, then `base`, then a YAML file, then overrides, each changing only what it names.

    A `Ramp` may be written as one number, which then holds for the whole run; written as a mapping, what it
    leaves out stays as it was, as in any other section. When a later layer changes the `type` of a section,
    what earlier ones changed in it is kept where the new kind has that key too. Interpolations are resolved at the
    end, so that they see the values of all layers; `\${` in a value is a plain `${`. `base: OTHER` at the top of a file
    names a config whose values come before the file's own: a path beside the file, or what `find_config` finds.

    Args:
        source: a YAML file, or None.
        overrides: `key=value` with dotted keys and YAML values. Text needs no quotes, and a prompt is taken as it
            stands, `${` and all.
        base: nested values, for instance those of another config.
        of: the dataclass that has the keys; that of text to 3-D by default.

    Raises:
        UserError: a file that is missing or no YAML, an unknown key, a value of the wrong type, a bad choice, an
            interpolation that leads nowhere.
    """
    config = of()  # of the kinds in use; its values stay the defaults
    merged = OmegaConf.structured(config)
    layers = [] if base is None else [_Layer(base, "base config")]
    layers += [] if source is None else _with_bases(Path(source))
    layers = [_in_full(layer, config) for layer in layers]
    for layer in layers:
        _choose_kinds(config, merged, layer)
        _merge(config, merged, layer)
    # Kinds first, because a key's type decides how an override's text is read.
    parsed = [_split(override) for override in overrides]
    for keys, text in parsed:
        if ".".join(keys).removesuffix(".type") in schema.KINDS:
            _choose_kinds(config, merged, _override(keys, text, config))
    for keys, text in parsed:
        layers.append(_override(keys, text, config))
        _merge(config, merged, layers[-1])
    try:
        return OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise _unresolved(error, merged, config, layers) from None


def escape(text: str) -> str:
    """The text written so that OmegaConf reads it as it stands, with any `${` and also if it is `???`."""
    if re.fullmatch(r"\\*\?\?\?", text):
        return "\\" + text
    return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", text)


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


def _with_bases(path: Path) -> list[_Layer]:
    """The layers of a file: those of its `base`, then its own."""
    layers: list[_Layer] = []
    seen: list[Path] = []
    while True:
        layer = _read(path)
        values = dict(layer.values)
        named = values.pop("base", None)
        layers.insert(0, replace(layer, values=values))
        if named is None:
            return layers
        place = layer.where("base")
        if not isinstance(named, str):
            raise UserError(f"{place}: base must be the name of a config, not {named!r}")
        seen.append(path.resolve())
        beside = path.parent / named
        try:
            path = beside if beside.is_file() else find_config(named)
        except UserError as error:
            raise UserError(f"{place}: {error}") from None
        if path.resolve() in seen:
            raise UserError(f"{place}: base {named!r} leads back to {path.name} itself")


def _split(override: str) -> tuple[list[str], str]:
    path, equals, text = override.partition("=")
    if not equals or not path.strip():
        raise UserError(f"{override!r} is not key=value; write for instance guidance.resamples=8")
    return path.strip().split("."), text


_PROMPTS = ("prompt", "negative_prompt")


def _override(keys: list[str], text: str, config: Any) -> _Layer:
    path = ".".join(keys)
    value: Any = text
    # A prompt is text whatever YAML would make of it, unless it is in quotes.
    if _type_of(path, config) is not str or text.startswith(("'", '"')):
        try:
            value = parse(text)
        except yaml.YAMLError as error:
            raise UserError(f"{path}={text}: the value is not valid YAML: {problem(error)}") from None
    if path in _PROMPTS and isinstance(value, str):
        value = escape(value)
    for key in reversed(keys):
        value = {key: value}
    return _in_full(_Layer(value, f"{path}={text}"), config)


def _in_full(layer: _Layer, config: Any) -> _Layer:
    """The layer with `scene: gaussians` written as `scene: {type: gaussians}`, for every section with a `type`."""

    def expanded(values: Any, keys: list[str]) -> Any:
        if not keys:
            return {"type": values} if isinstance(values, str) and not _is_interpolation(values) else values
        if not isinstance(values, dict) or keys[0] not in values:
            return values
        return values | {keys[0]: expanded(values[keys[0]], keys[1:])}

    values = layer.values
    for path in schema.KINDS:
        if _section_at(config, path) is not None:
            values = expanded(values, path.split("."))
    return replace(layer, values=values)


def _choose_kinds(config: Any, merged: DictConfig, layer: _Layer) -> None:
    """Give the sections the kinds that the layer names, keeping what was changed and both kinds have."""
    for path, kind in schema.KINDS.items():
        values: Any = layer.values
        for key in path.split("."):
            values = values.get(key) if isinstance(values, dict) else None
        old = _section_at(config, path)
        if old is None or not isinstance(values, dict) or "type" not in values:
            continue
        name = values["type"]
        if name == old.type:
            continue
        new = _new_section(path, kind, name, layer)
        above, _, leaf = path.rpartition(".")
        node = OmegaConf.select(merged, above) if above else merged
        written = cast(dict[str, Any], OmegaConf.to_container(node[leaf]))
        both = _hints(type(old)).keys() & _hints(type(new)).keys() - {"type"}
        setattr(_section_at(config, above) if above else config, leaf, new)
        node[leaf] = new
        node[leaf].merge_with({key: written[key] for key in both if written[key] != getattr(old, key)})


def _new_section(path: str, kind: str, name: Any, layer: _Layer) -> Any:
    """The defaults of a kind that a layer names."""
    where = layer.where(f"{path}.type")
    known = registry.names(kind)
    if not isinstance(name, str) or (name not in known and "." not in name):
        near = difflib.get_close_matches(str(name), known, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"{where}: {path}.type takes {' or '.join(known)}, not {_shown(name)}{hint}")
    try:
        return section(kind, name)()
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _section_at(config: Any, path: str) -> Any:
    """The section at a dotted key, or None."""
    found = config
    for key in path.split("."):
        found = getattr(found, key, None)
    return found if is_dataclass(found) else None


def _merge(config: Any, merged: DictConfig, layer: _Layer) -> None:
    try:
        merged.merge_with(_checked(config, layer.values, "", config, layer))
    except OmegaConfBaseException as error:
        raise _unresolved(error, merged, config, [layer]) from None


# ------------------------------------------------------------------------------------------- values


def _checked(section: Any, values: Mapping[str, Any], prefix: str, config: Any, layer: _Layer) -> dict[str, Any]:
    """A layer's values for a section, each checked, and every Ramp as a mapping."""
    hints, result = _hints(type(section)), {}
    for key, value in values.items():
        path = f"{prefix}{key}"
        if key not in hints:
            raise _unknown_key(path, list(hints), config, layer)
        old = getattr(section, key)
        if isinstance(old, Ramp) and (_is_number(value) or _is_interpolation(value)):
            value = _ramp(value, config)
        if is_dataclass(old):
            if not isinstance(value, dict):
                raise _wrong_value(path, value, type(old), layer)
            result[key] = _checked(old, value, f"{path}.", config, layer)
        elif isinstance(value, dict) and value:
            raise _unknown_key(f"{path}.{next(iter(value))}", [], config, layer)
        elif not (key == "type" and prefix[:-1] in schema.KINDS):  # which is chosen already
            result[key] = _converted(path, value, hints[key], layer)
    return result


def _ramp(value: Any, config: Any) -> dict[str, Any]:
    """The mapping that one value for a Ramp stands for: a number, or `${key}` of a number or another Ramp."""
    other = value[2:-1] if isinstance(value, str) else ""
    if _type_of(other, config) is Ramp:
        return {part: f"${{{other}.{part}}}" for part in _hints(Ramp)}
    return {"first": value, "last": value, "begin": 0.0, "end": 1.0}


def _converted(path: str, value: Any, hint: Any, layer: _Layer) -> Any:
    if _is_interpolation(value):
        return value  # OmegaConf checks what it resolves to
    if value == "???":
        raise UserError(f"{layer.where(path)}: {path} is ???, which stands for a missing value; give it one")
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
        flat = all(isinstance(item, (str, int, float)) for item in (value if isinstance(value, list) else [value]))
        fits = hint is Any and flat
    if not fits:
        raise _wrong_value(path, value, hint, layer)
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_interpolation(value: Any) -> bool:
    return isinstance(value, str) and "${" in value


# ------------------------------------------------------------------------------------------- errors


_ALL_KEYS = "`carv3d config` lists all keys"


def _unknown_key(path: str, siblings: list[str], config: Any, layer: _Layer) -> UserError:
    prefix, _, key = path.rpartition(".")
    parent, where = _type_of(prefix, config), layer.where(path)
    if _type_of(path, config) is not None:
        return UserError(f"{where}: {path!r} in YAML is one key inside the other, not one with a dot")
    for kind, of in _other_kinds(prefix):
        if key in _hints(of):
            used = _section_at(config, prefix).type
            return UserError(f"{where}: {path!r} is of {prefix}.type={kind}, but the type is {used}")
    hint = _nearest(path, siblings, config)
    if not hint and parent is not None and not is_dataclass(parent):
        hint = f"{prefix!r} takes {_accepted(parent)}"
    return UserError(f"{where}: unknown key {path!r}; {hint or _ALL_KEYS}")


def _other_kinds(path: str) -> Iterator[tuple[str, type[Any]]]:
    """The sections that can stand at a dotted key, by type; none where it has no `type`."""
    kind = schema.KINDS.get(path)
    for name in registry.names(kind) if kind else ():
        try:
            yield name, section(kind or "", name)
        except UserError:  # a plug-in that cannot be imported is no help
            continue


def _nearest(path: str, siblings: list[str], config: Any) -> str:
    """Suggests, in this order: the same key elsewhere, a near one beside it, a near one elsewhere."""
    prefix, _, key = path.rpartition(".")
    leaf_of = {full: full.rpartition(".")[2] for full in _paths(config)}
    near = [full for full, leaf in leaf_of.items() if leaf == key][:3]
    if not near:
        beside = difflib.get_close_matches(key, siblings, 1)
        near = [f"{prefix}.{sibling}" if prefix else sibling for sibling in beside]
    near = near or difflib.get_close_matches(path, list(leaf_of), 1)
    if not near:
        leaves = difflib.get_close_matches(key, set(leaf_of.values()), 1)
        near = [full for full, leaf in leaf_of.items() if leaf in leaves][:3]
    return f"did you mean {' or '.join(map(repr, near))}?" if near else ""


def _wrong_value(path: str, value: Any, hint: Any, layer: _Layer) -> UserError:
    shown = _shown(value)
    quotes = "; put it in quotes" if hint is str and value is not None else ""
    return UserError(f"{layer.where(path)}: {path} takes {_accepted(hint)}, not {shown}{quotes}")


def _shown(value: Any) -> str:
    return "no value" if value is None else repr(value)


def _unresolved(error: OmegaConfBaseException, merged: DictConfig, config: Any, layers: Sequence[_Layer]) -> UserError:
    """Of an interpolation, pointing at the last layer that says something about the key."""
    path = re.sub(r"\[.*", "", error.full_key or "") or _first_unresolved(merged, config)
    layer = next((layer for layer in reversed(layers) if layer.says(path)), layers[-1])
    reason = textwrap.shorten(str(error.msg).partition("\n    full_key:")[0], 200)
    if isinstance(error, InterpolationKeyError):
        wanted = re.search("'(.*?)'", reason)
        hint = (wanted and _nearest(wanted[1], [], config)) or _ALL_KEYS
    elif isinstance(error, GrammarParseError):
        hint = r"write \${ where a plain ${ is meant"
    else:
        hint = f"it takes {_accepted(_type_of(path, config))}"
    return UserError(f"{layer.where(path)}: {path}: {reason}; {hint}")


def _first_unresolved(merged: DictConfig, config: Any) -> str:
    """For the errors of OmegaConf that do not tell the key: a list from something that is none."""
    for path in _paths(config):
        try:
            OmegaConf.select(merged, path)
        except OmegaConfBaseException:
            return path
    return ""


def _accepted(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(map(str, get_args(hint)))
    if hint is Ramp:
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


def _hints(of: Any) -> dict[str, Any]:
    """The types of a dataclass's fields."""
    hints = get_type_hints(of)
    return {f.name: hints[f.name] for f in fields(of) if f.init}


def _paths(section: Any, prefix: str = "") -> Iterator[str]:
    """Every dotted key of a config."""
    for key in _hints(type(section)):
        yield f"{prefix}{key}"
        if is_dataclass(value := getattr(section, key)):
            yield from _paths(value, f"{prefix}{key}.")


def _type_of(path: str, config: Any) -> Any:
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
