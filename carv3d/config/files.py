"""Config files: where they are found, and the layers that a file and its `base` make."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from carv3d.config.paths import user_path
from carv3d.config.yaml_loader import line_numbers, parse, problem
from carv3d.errors import UserError


@dataclass(frozen=True)
class Layer:
    """Values as they were written, and their place, which errors name.

    Attributes:
        values: nested, by key.
        name: the file, or the override.
        text: of a YAML file.
    """

    values: Mapping[str, Any]
    name: str
    text: str = ""

    def where(self, path: str) -> str:
        """The place of a dotted key, or of the section that holds it."""
        lines = line_numbers(self.text) if self.text else {}
        line = lines.get(path) or lines.get(path.rpartition(".")[0])  # a part of a schedule that is one number
        return f"{self.name}:{line}" if line else self.name

    def has(self, path: str) -> bool:
        """Whether the layer sets the key, or sets a section that holds it to one value."""
        values: Any = self.values
        for key in path.split("."):
            if not isinstance(values, dict):
                return True
            if key not in values:
                return False
            values = values[key]
        return True


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
    wanted = user_path(name)
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


def layers_of(path: Path) -> list[Layer]:
    """The layers of a file: those of its `base` first, then its own.

    Raises:
        UserError: a file that is missing or not valid YAML, or a `base` that cannot be used.
    """
    layers: list[Layer] = []
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


def _read(path: Path) -> Layer:
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
    return Layer(values or {}, name, text)
