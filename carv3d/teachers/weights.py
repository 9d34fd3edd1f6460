"""Finding a pipeline's weights: in a folder, in one file, on a hub or its mirrors. Nothing is loaded here."""

from __future__ import annotations

import errno
import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from carv3d.cache import cache_folder
from carv3d.errors import UserError

BUILTIN = Path(__file__).parent / "builtin"
INDEX = "model_index.json"

# Parts of pipelines that no teacher needs.
_UNUSED = ("safety_checker", "feature_extractor", "image_encoder", "watermarker")
_WEIGHTS = (".safetensors", ".bin")


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

    def size(self) -> int:
        """Bytes of its weights."""
        return sum(
            file.stat().st_size for file in self.folder.rglob("*") if file.suffix in _WEIGHTS and _used(file.name)
        )


@dataclass(frozen=True)
class Remote:
    """A pipeline on a hub.

    Attributes:
        id, revision: which; the commit.
        files: those that a teacher needs, and
        size: their bytes.
        licence: as its card states it.
        here: whether they are all on this machine.
    """

    id: str
    revision: str
    files: tuple[str, ...]
    size: int
    licence: str
    here: bool


def find(
    path: str, *, revision: str = "", mirrors: Sequence[str] = (), half: bool = False, pickle: bool = False
) -> Weights:
    """The first of a path and its mirrors that has weights; a hub's are downloaded.

    Args:
        path: "builtin", a pipeline folder, a .safetensors file of a whole Stable Diffusion model, or a hub id.
        revision: of a hub: a branch, tag or commit; "" for its main one.
        mirrors: tried in order where the path does not exist; the same kinds.
        half: take half-precision files where there are such.
        pickle: take pickled .bin files where there are no others.

    Raises:
        UserError: what was tried, and what to do.
    """
    if path == "builtin":
        return Weights(BUILTIN, path, digest(BUILTIN))
    reasons = []
    for source in (path, *mirrors):
        place = Path(source).expanduser()
        try:
            if place.is_file():
                return _converted(place)
            if place.is_dir():
                return _checked(place, source, digest(place), pickle)
            if not is_hub_id(source):
                reasons.append(f"{source} does not exist")
                continue
            folder, commit = _download(source, revision or None, half, pickle)
            return _checked(folder, source, commit, pickle)
        except _MissingError as error:
            reasons.append(str(error))
    hint = "give teacher.path a diffusers pipeline folder, a .safetensors file or a hub id"
    raise UserError(f"no teacher at {path!r}: {'; '.join(reasons)}; {hint}")


def look(path: str, *, revision: str = "", mirrors: Sequence[str] = (), half: bool = False) -> Weights | Remote:
    """What `find` would use, without downloading.

    Raises:
        UserError: as `find`.
    """
    reasons = []
    for source in (path, *mirrors):
        place = Path(source).expanduser()
        if source == "builtin" or place.exists():
            return find(source)
        if not is_hub_id(source):
            reasons.append(f"{source} does not exist")
            continue
        try:
            return _remote(source, revision or None, half, pickle=False)
        except _MissingError as error:
            reasons.append(str(error))
    raise UserError(f"no teacher at {path!r}: {'; '.join(reasons)}")


def pipeline_of(folder: Path) -> str:
    """The class that a pipeline folder says it is of.

    Raises:
        UserError: it does not say, or cannot be read.
    """
    try:
        return str(json.loads((folder / INDEX).read_text())["_class_name"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / INDEX} cannot be read: get the teacher's files again ({error})") from None


def is_hub_id(source: str) -> bool:
    """Whether it looks like owner/name."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", source) is not None and not source.startswith(".")


def digest(folder: Path) -> str:
    """Of the names, sizes and times of a folder's files."""
    found = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        stat = file.stat()
        found.update(f"{file.relative_to(folder)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return found.hexdigest()[:16]


def configs_of(remote: Remote) -> Path:
    """A folder with the config files of a pipeline on a hub; they are small."""
    from huggingface_hub import snapshot_download

    names = [name for name in remote.files if name.endswith(".json")]
    return Path(snapshot_download(remote.id, revision=remote.revision, allow_patterns=names))


def licence_of(folder: Path) -> str:
    """What a folder's README.md or LICENSE file states; "" if there is neither."""
    readme = folder / "README.md"
    if readme.is_file() and (found := re.search(r"^license:\s*(\S+)", readme.read_text(errors="replace"), re.M)):
        return found[1]
    texts = sorted(folder.glob("LICENSE*"))
    lines = texts[0].read_text(errors="replace").strip().splitlines() if texts else []
    return lines[0].strip() if lines else ""


class _MissingError(Exception):
    """One source has no weights; another may."""


def _used(name: str) -> bool:
    return not name.startswith(_UNUSED)


def _checked(folder: Path, source: str, revision: str, pickle: bool) -> Weights:
    if not (folder / INDEX).is_file():
        raise UserError(f"{folder} is not a diffusers pipeline folder: {INDEX} is missing")
    pipeline_of(folder)
    for part in _networks(json.loads((folder / INDEX).read_text())):
        files = [path.suffix for path in (folder / part).glob("*") if path.suffix in _WEIGHTS]
        if ".safetensors" in files or (pickle and files):
            continue
        if files:
            raise UserError(
                f"{folder / part} holds pickled .bin weights alone, which can run any code: get .safetensors ones, "
                "or set teacher.allow_pickle=true if you trust where they came from"
            )
        raise UserError(f"{folder / part} holds no .safetensors weights: get the teacher's files again")
    return Weights(folder, source, revision)


def _networks(index: dict[str, Any]) -> list[str]:
    """Parts of a pipeline's index that have weights."""
    kinds = {key: value for key, value in index.items() if isinstance(value, list) and len(value) == 2 and value[1]}
    bare = ("Tokenizer", "Scheduler", "Processor", "Extractor")
    return [key for key, (_, kind) in kinds.items() if _used(key) and not any(word in kind for word in bare)]


# ---------------------------------------------------------------------------------------------------- hubs


def _remote(source: str, revision: str | None, half: bool, pickle: bool) -> Remote:
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        info = HfApi().model_info(source, revision=revision, files_metadata=True)
    except GatedRepoError:
        raise UserError(f"{source} is gated: accept its licence at its page on the hub, then `hf auth login`") from None
    except RepositoryNotFoundError:
        raise _MissingError(f"{source} is not on the hub, or not public") from None
    except Exception as error:  # what the network raises differs by the hub library's version
        raise _MissingError(f"the hub cannot be asked for {source} ({_first_line(error)})") from None
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    files = wanted(list(sizes), half=half, pickle=pickle)
    commit = str(info.sha)
    here = all(isinstance(try_to_load_from_cache(source, name, revision=commit), str) for name in files)
    card = info.card_data
    licence = str(card.get("license") or card.get("license_name") or "") if card else ""
    return Remote(source, commit, tuple(files), sum(sizes[name] for name in files), licence, here)


def wanted(names: Sequence[str], *, half: bool, pickle: bool) -> list[str]:
    """Of a repository's files, those that a teacher needs: configs, tokenizers, and one set of weights a part.

    Raises:
        UserError: it is no pipeline, or a part has pickled weights alone and those are not wanted.
    """
    if INDEX not in names:
        raise UserError(f"it is no diffusers pipeline: it has no {INDEX}")
    found = [INDEX]
    for part in sorted({name.partition("/")[0] for name in names if "/" in name}):
        if not _used(part):
            continue
        mine = [name for name in names if name.startswith(f"{part}/") and name.count("/") == 1]
        texts = [name for name in mine if name.endswith((".json", ".txt", ".model")) and ".index." not in name]
        weights = [name for name in mine if name.endswith(".safetensors")]
        known = [name for name in weights if "/diffusion_pytorch_model" in name or "/model" in name]
        of_half = [name for name in known if ".fp16" in name]
        plain = [name for name in known if not re.search(r"\.(fp16|ema|non_ema|bf16)", name)]
        chosen = (of_half if half else plain) or plain or of_half
        if not chosen:
            pickled = [name for name in mine if name.endswith(("model.bin",))]
            if pickled and not pickle:
                raise UserError(
                    f"its {part} has pickled weights alone, which can run any code: use another model, or set "
                    "teacher.allow_pickle=true if you trust it"
                )
            chosen = pickled
        if len(chosen) > 1:  # in shards, whose index is needed
            texts += [name for name in mine if name.endswith("safetensors.index.json") and (".fp16" in name) == half]
        if texts or chosen:
            found += [*texts, *chosen]
    return found


def _download(source: str, revision: str | None, half: bool, pickle: bool) -> tuple[Path, str]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        remote = _remote(source, revision, half, pickle)
    except _MissingError as missing:
        try:  # without the hub, what was downloaded before will do
            folder = Path(snapshot_download(source, revision=revision, local_files_only=True))
        except (LocalEntryNotFoundError, OSError):
            raise missing from None
        return folder, folder.name
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    try:
        found = snapshot_download(source, revision=remote.revision, allow_patterns=list(remote.files))
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise UserError(f"{source} cannot be written to the hub's cache: {error.strerror}") from None
        raise UserError(
            f"the download of {source} broke off; the same command goes on ({_first_line(error)})"
        ) from None
    return Path(found), remote.revision


def _first_line(error: Exception) -> str:
    return re.sub(r" *https?://\S+", "", " ".join(str(error).split()))[:120] or type(error).__name__


# ------------------------------------------------------------------------------------------------ one file


def _converted(file: Path) -> Weights:
    """A whole model in one file as a pipeline folder, made once, in the cache."""
    if file.suffix != ".safetensors":
        raise UserError(f"{file}: one file must be .safetensors (.ckpt files are pickled, and can run any code)")
    stat = file.stat()
    name = f"{file.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}"
    revision = hashlib.sha256(name.encode()).hexdigest()[:16]
    folder = cache_folder() / "converted" / f"{file.stem}-{revision}"
    if not (folder / INDEX).is_file():
        from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

        try:
            with safe_open(file, framework="pt") as opened:
                names = list(opened.keys())
        except SafetensorError as error:
            raise UserError(f"{file} is damaged: get it again ({_first_line(error)})") from None
        # Of the two text encoders of XL.
        kind = StableDiffusionXLPipeline if any("embedders.1." in name for name in names) else StableDiffusionPipeline
        beside = file.with_suffix("")  # configs and tokenizers, where the hub cannot be asked
        options = {"config": str(beside)} if beside.is_dir() else {}
        try:
            pipeline = kind.from_single_file(str(file), **options)
        except Exception as error:
            raise UserError(
                f"{file} cannot be read as a {kind.__name__} ({_first_line(error)}); without a hub, put a folder "
                f"of the pipeline's configs and tokenizers at {beside}"
            ) from error
        part = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        pipeline.save_pretrained(part, safe_serialization=True)
        part.rename(folder)
    return Weights(folder, str(file), revision)
