r"""Reading configs: YAML files and `key=value` over the defaults, with errors that name the place and the remedy.

    config = load(find_config("shapes"), ["prompt=a red chair", "guidance.resamples=8"])
    validate(config)

The dataclasses of the components declare the keys (`carv3d.config.keys`). Each layer is checked against them when it
is added, so that an error names its file and line. OmegaConf resolves interpolations such as `${seed}` at the end, so
that they see the values of all layers; `\${` in a value is a plain `${`. Nothing here imports torch.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import GrammarParseError, InterpolationKeyError, OmegaConfBaseException

from carv3d.config.components import config_of
from carv3d.config.files import Layer, layers_of
from carv3d.config.interpolation import escape, is_interpolation, too_long
from carv3d.config.keys import Field, fields_of
from carv3d.config.linear_schedule import LinearSchedule
from carv3d.config.suggestions import ALL_KEYS, nearest, paths, unknown_key, unknown_type
from carv3d.config.values import ValueProblem, accepted, check, shown
from carv3d.config.yaml_loader import parse, problem
from carv3d.errors import UserError

if TYPE_CHECKING:
    from carv3d.generation.config import Config

_C = TypeVar("_C")
_Values = dict[str, Any]


@overload
def load(
    source: Path | str | None, overrides: Sequence[str] = (), *, base: Mapping[str, Any] | None = None
) -> Config: ...


@overload
def load(
    source: Path | str | None, overrides: Sequence[str] = (), *, base: Mapping[str, Any] | None = None, of: type[_C]
) -> _C: ...


def load(
    source: Path | str | None,
    overrides: Sequence[str] = (),
    *,
    base: Mapping[str, Any] | None = None,
    of: type[Any] | None = None,
) -> Any:
    """The defaults, then `base`, then a YAML file, then overrides; each changes only what it names.

    A linear schedule may be written as one number. Written as a mapping, it keeps the parts that the mapping leaves
    out. When a later layer changes the `type` of a section, the values of earlier layers are kept where the new type
    has the same key. `base: OTHER` at the top of a file names a config whose values come before the file's own: a path
    beside the file, or a name for `find_config`.

    Args:
        source: a YAML file, or None.
        overrides: `key=value` with dotted keys and YAML values. Text needs no quotes, and a prompt is taken literally,
            `${` included.
        base: nested values, for instance those of another config.
        of: the dataclass that has the keys; that of `carv3d generate` by default.

    Raises:
        UserError: a file that is missing or no YAML, an unknown key, a value of the wrong type or out of its range, or
            an interpolation that cannot be resolved.
    """
    config = (of or _default_kind())()  # default values of the types in use
    layers = [] if base is None else [Layer(base, "base config")]
    layers += [] if source is None else layers_of(Path(source))
    written: _Values = {}
    for layer in layers:
        written = _Adding(config, layer).to(written)
    # Types first, because the type of a section decides which keys it has.
    for keys, text in sorted(map(_split, overrides), key=lambda override: not _chooses_type(config, override[0])):
        layers.append(_override(config, keys, text))
        written = _Adding(config, layers[-1]).to(written)
    merged = _over(_plain(config), written)
    if path := too_long(merged):
        key = path.partition("[")[0]
        raise UserError(f"{_place(key, layers)}{key} refers to too much: write the text itself")
    try:
        values: Any = OmegaConf.to_container(OmegaConf.create(merged), resolve=True)
    except OmegaConfBaseException as error:
        _stop_if_interrupted(error)
        raise _unresolved(error, config, layers) from None
    return _made(config, values, "", layers)


def _default_kind() -> type[Any]:
    from carv3d.generation.config import Config

    return Config


# -------------------------------------------------------------------------------------------- layers


class _Adding:
    """Adds the values of one layer to those of the layers before it, and checks them.

    A section whose type the layer changes is replaced in `config` by the defaults of the new type.
    """

    def __init__(self, config: Any, layer: Layer) -> None:
        self.config, self.layer = config, layer

    def to(self, written: _Values) -> _Values:
        """Both layers' values, nested."""
        return self._section(self.config, written, self.layer.values, "")

    def _section(self, of: Any, old: _Values, new: Mapping[str, Any], prefix: str) -> _Values:
        known, result = fields_of(type(of)), dict(old)
        for key, value in new.items():
            path = f"{prefix}{key}"
            if key not in known:
                raise unknown_key(path, self.config, self.layer)
            field = known[key]
            if field.is_section:
                result[key] = self._subsection(field, of, result.get(key, {}), value, path)
            elif field.hint is LinearSchedule:
                result[key] = self._schedule(field, result.get(key), value, path)
            else:
                result[key] = self._leaf(field, value, path)
        return result

    def _subsection(self, field: Field, parent: Any, old: _Values, value: Any, path: str) -> _Values:
        key = path.rpartition(".")[2]
        section = getattr(parent, key)
        if field.component and isinstance(value, str) and not is_interpolation(value):
            value = {"type": value}  # `scene: gaussians` is short for `scene: {type: gaussians}`
        if not isinstance(value, dict):
            raise self._error(path, f"takes {accepted(type(section))}, not {shown(value)}")
        if field.component and "type" in value:
            name = value["type"]
            value = {other: value[other] for other in value if other != "type"}
            if name != section.type:
                section = self._default(field.component.kind, name, path)
                setattr(parent, key, section)
                old = {other: old[other] for other in old if other in fields_of(type(section))}
            old = old | {"type": name}
        return self._section(section, old, value, f"{path}.")

    def _default(self, kind: str, name: Any, path: str) -> Any:
        try:
            if problem := unknown_type(kind, name):
                raise UserError(f"{path}.type {problem}")
            return config_of(kind, name)()
        except UserError as error:
            raise UserError(f"{self.layer.where(f'{path}.type')}: {error}") from None

    def _schedule(self, field: Field, old: Any, value: Any, path: str) -> Any:
        """A mapping changes parts of the schedule before it; any other value replaces it."""
        if isinstance(value, dict):
            return self._section(LinearSchedule(), self._in_parts(old), value, f"{path}.")
        return self._in_parts(value if is_interpolation(value) else self._leaf(field, value, path))

    def _in_parts(self, value: Any) -> _Values:
        """The mapping that stands for one value: a number, or `${key}` of a number or of another schedule."""
        if value is None or isinstance(value, dict):
            return value or {}
        other = value[2:-1] if isinstance(value, str) else ""
        if (found := paths(self.config).get(other)) and found.hint is LinearSchedule:
            return {part: f"${{{other}.{part}}}" for part in fields_of(LinearSchedule)}
        return {"first": value, "last": value, "begin": 0.0, "end": 1.0}

    def _leaf(self, field: Field, value: Any, path: str) -> Any:
        if isinstance(value, dict) and value:
            raise unknown_key(f"{path}.{next(iter(value))}", self.config, self.layer)
        items = value if isinstance(value, list) else [value]
        if "???" in items:
            raise self._error(path, "is ???, which stands for a missing value; give it one")
        if any(is_interpolation(item) for item in items):
            return value  # checked when it is resolved
        try:
            check(field, value)
        except ValueProblem as error:
            raise self._error(path, str(error)) from None
        return value

    def _error(self, path: str, said: str) -> UserError:
        return UserError(f"{self.layer.where(path)}: {path} {said}")


# ----------------------------------------------------------------------------------------- overrides


def _split(override: str) -> tuple[list[str], str]:
    path, equals, text = override.partition("=")
    if not equals or not path.strip():
        raise UserError(f"{override!r} is not key=value; write for instance guidance.resamples=8")
    return path.strip().split("."), text


def _chooses_type(config: Any, keys: list[str]) -> bool:
    found = paths(config).get(".".join(keys).removesuffix(".type"))
    return found is not None and found.component is not None


_PROMPTS = ("prompt", "negative_prompt")


def _override(config: Any, keys: list[str], text: str) -> Layer:
    path = ".".join(keys)
    value: Any = text
    found = paths(config).get(path)
    # A text is taken literally, whatever it would be in YAML, unless it is in quotes.
    if found is None or found.hint is not str or text.startswith(("'", '"')):
        try:
            value = parse(text)
        except yaml.YAMLError as error:
            raise UserError(f"{path}={text}: the value is not valid YAML: {problem(error)}") from None
    if path in _PROMPTS and isinstance(value, str):
        value = escape(value)
    for key in reversed(keys):
        value = {key: value}
    return Layer(value, f"{path}={text if len(text) <= 100 else text[:97] + '...'}")


# --------------------------------------------------------------------------------- the config itself


def _plain(section: Any) -> _Values:
    """The values of a config object, nested."""
    found: _Values = {}
    for key, field in fields_of(type(section)).items():
        value = getattr(section, key)
        if field.is_section or isinstance(value, LinearSchedule):
            value = _plain(value)
        found[key] = escape(value) if isinstance(value, str) else value
    return found


def _over(values: Any, written: Any) -> Any:
    """`written` over `values`, key by key."""
    if not (isinstance(values, dict) and isinstance(written, dict)):
        return written
    return values | {key: _over(values.get(key), value) for key, value in written.items()}


def _made(like: Any, values: _Values, prefix: str, layers: Sequence[Layer]) -> Any:
    """The config object of nested values; `like` has its types."""
    found = {}
    for key, field in fields_of(type(like)).items():
        path, value = f"{prefix}{key}", values[key]
        if field.is_section:
            found[key] = _made(getattr(like, key), value, f"{path}.", layers)
            continue
        try:
            found[key] = check(field, value)
        except ValueProblem as error:
            raise UserError(f"{_place(path, layers)}{path} {error}") from None
    return type(like)(**found)


def _place(path: str, layers: Sequence[Layer]) -> str:
    """The last layer that sets a key, as the beginning of an error."""
    layer = next((layer for layer in reversed(layers) if layer.has(path)), None)
    return f"{layer.where(path)}: " if layer else ""


def _stop_if_interrupted(error: BaseException) -> None:
    """Go on with a Ctrl-C: what OmegaConf does when it is interrupted raises errors of its own.

    Raises:
        KeyboardInterrupt: the error was raised while one was handled.
    """
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, KeyboardInterrupt):
            raise found
        found = found.__cause__ or found.__context__


def _unresolved(error: OmegaConfBaseException, config: Any, layers: Sequence[Layer]) -> UserError:
    """The error of an interpolation."""
    path = re.sub(r"\[.*", "", error.full_key or "")
    reason = textwrap.shorten(str(error.msg).partition("\n    full_key:")[0], 200)
    if isinstance(error, InterpolationKeyError):
        wanted = re.search("'(.*?)'", reason)
        hint = (wanted and nearest(wanted[1], [], config)) or ALL_KEYS
    elif isinstance(error, GrammarParseError):
        hint = r"write \${ where a plain ${ is meant"
    else:
        found = paths(config).get(path)
        hint = f"it takes {accepted(found.hint, found.key)}" if found else ALL_KEYS
    return UserError(f"{_place(path, layers)}{path}: {reason}; {hint}")
