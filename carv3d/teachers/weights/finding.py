"""Finding a pipeline's weights: in a folder, in one file, on a hub or its mirrors. Nothing is loaded here."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from carv3d.config.paths import user_path
from carv3d.errors import UserError
from carv3d.teachers.weights import hub
from carv3d.teachers.weights.files import INDEX, USED, missing_weights, wanted
from carv3d.teachers.weights.single_file import SingleFile

BUILTIN = Path(__file__).parents[1] / "builtin"


@dataclass(frozen=True)
class Weights:
    """A pipeline folder on this machine.

    Attributes:
        folder: with model_index.json.
        source: the path or hub id that it was found at.
        revision: a hub's commit, or a digest of the files' names, sizes and times.
    """

    folder: Path
    source: str
    revision: str

    @property
    def size(self) -> int:
        """Bytes of the files that a teacher would load."""
        names = [path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file()]
        return sum((self.folder / name).stat().st_size for name in wanted(names, half=False, pickle=True))


def find(
    path: str, *, revision: str = "", mirrors: Sequence[str] = (), half: bool = False, pickle: bool = False
) -> Weights:
    """The first of a path and its mirrors that has weights; a hub's are downloaded, a single file is converted.

    Args:
        path: "builtin", a pipeline folder, a .safetensors file of a whole Stable Diffusion model, or a hub id.
        revision: of a hub: a branch, tag or commit; "" for its main one.
        mirrors: tried in order where the path does not exist; the same kinds.
        half: prefer half-precision files. pickle: allow pickled .bin files if there are no others.

    Raises:
        UserError: nothing was found; the message says what was tried, and what to do.
    """
    found = look(path, revision=revision, mirrors=mirrors, half=half, pickle=pickle)
    if isinstance(found, SingleFile):
        return _checked(found.convert(), str(found.file), found.revision, pickle)
    if isinstance(found, hub.Remote):
        return _checked(hub.download(found), found.id, found.revision, pickle)
    return found


def look(
    path: str, *, revision: str = "", mirrors: Sequence[str] = (), half: bool = False, pickle: bool = False
) -> Weights | hub.Remote | SingleFile:
    """What `find` would use, without downloading or converting. If the hub cannot be reached, an earlier download is
    used.

    Raises:
        UserError: as `find`.
    """
    reasons = []
    for source in (path, *mirrors):
        place = user_path(source)
        if source == "builtin":
            return Weights(BUILTIN, source, digest(BUILTIN))
        if place.is_file():
            file = SingleFile.of(place)
            return _checked(file.folder, source, file.revision, pickle) if file.converted else file
        if place.is_dir():
            return _checked(place, source, digest(place), pickle)
        if not is_hub_id(source):
            reasons.append(f"{source} does not exist")
            continue
        try:
            return hub.look(source, revision or None, half=half, pickle=pickle)
        except hub.MissingError as error:
            if (folder := hub.downloaded(source, revision or None)) is not None:
                return _checked(folder, source, folder.name, pickle)
            reasons.append(str(error))
    hint = "give teacher.path a diffusers pipeline folder, a .safetensors file or a hub id"
    raise UserError(f"no teacher at {path!r}: {'; '.join(reasons)}; {hint}")


def pipeline_of(folder: Path) -> str:
    """The pipeline class that a folder names.

    Raises:
        UserError: it names none, or cannot be read.
    """
    try:
        return str(json.loads((folder / INDEX).read_text())["_class_name"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / INDEX} cannot be read: get the teacher's files again ({error})") from None


def is_hub_id(source: str) -> bool:
    """Whether the text has the form owner/name."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", source) is not None and not source.startswith(".")


def digest(folder: Path) -> str:
    """A digest of the names, sizes and times of a folder's files."""
    found = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        stat = file.stat()
        found.update(f"{file.relative_to(folder)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return found.hexdigest()[:16]


def licence_of(folder: Path) -> str:
    """The licence in a folder's README.md or LICENSE file; "" if there is neither."""
    readme = folder / "README.md"
    if readme.is_file() and (found := re.search(r"^license:\s*(\S+)", readme.read_text(errors="replace"), re.M)):
        return found[1]
    texts = sorted(folder.glob("LICENSE*"))
    lines = texts[0].read_text(errors="replace").strip().splitlines() if texts else []
    return lines[0].strip() if lines else ""


def _checked(folder: Path, source: str, revision: str, pickle: bool) -> Weights:
    if not (folder / INDEX).is_file():
        raise UserError(f"{folder} is not a diffusers pipeline folder: {INDEX} is missing")
    pipeline_of(folder)
    for part in _networks(json.loads((folder / INDEX).read_text())):
        if reason := missing_weights([path.name for path in (folder / part).glob("*")], pickle):
            raise UserError(f"{folder / part} {reason}")
    return Weights(folder, source, revision)


def _networks(index: dict[str, Any]) -> list[str]:
    """Parts of a pipeline's index that have weights."""
    kinds = {key: value for key, value in index.items() if isinstance(value, list) and len(value) == 2 and value[1]}
    bare = ("Tokenizer", "Scheduler")
    return [key for key, (_, kind) in kinds.items() if USED.fullmatch(key) and not any(word in kind for word in bare)]
