"""Pipelines on a hub: their files and sizes without a download, and the download."""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass
from pathlib import Path

from carv3d.errors import UserError
from carv3d.teachers.weights.files import wanted


@dataclass(frozen=True)
class Remote:
    """A pipeline on a hub.

    Attributes:
        id, revision: the pipeline, and the commit.
        files: those that a teacher needs, and
        size: their bytes.
        licence: as its card states it.
        here: whether all files are on this machine.
    """

    id: str
    revision: str
    files: tuple[str, ...]
    size: int
    licence: str
    here: bool


class MissingError(Exception):
    """The hub has no such pipeline, or cannot be reached; a mirror may have it."""


def look(source: str, revision: str | None, *, half: bool, pickle: bool) -> Remote:
    """The pipeline on the hub.

    Args:
        source: owner/name.
        revision: a branch, tag or commit; None for the main one.
        half, pickle: see `carv3d.teachers.weights.find`.

    Raises:
        MissingError: there is none, or the hub cannot be reached.
        UserError: the pipeline cannot be used, or needs the user's consent.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = HfApi().model_info(source, revision=revision, files_metadata=True)
    except GatedRepoError:
        raise UserError(f"{source} is gated: accept its licence at its page on the hub, then `hf auth login`") from None
    except RevisionNotFoundError:
        raise MissingError(f"{source} has no revision {revision!r}") from None
    except RepositoryNotFoundError:
        raise MissingError(f"{source} is not on the hub, or not public") from None
    except Exception as error:  # network errors differ between versions of the hub library
        raise MissingError(f"the hub cannot be asked for {source} ({first_line(error)})") from None
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    try:
        files = wanted(list(sizes), half=half, pickle=pickle)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    commit = str(info.sha)
    here = all(isinstance(try_to_load_from_cache(source, name, revision=commit), str) for name in files)
    card = info.card_data
    licence = str(card.get("license") or card.get("license_name") or "") if card else ""
    return Remote(source, commit, tuple(files), sum(sizes[name] for name in files), licence, here)


def download(remote: Remote) -> Path:
    """The folder of its files; missing files are downloaded.

    Raises:
        UserError: the download failed, or the disk is full.
    """
    return _snapshot(remote, list(remote.files))


def configs_of(remote: Remote) -> Path:
    """A folder with its config files alone; they are small.

    Raises:
        UserError: as `download`.
    """
    return _snapshot(remote, [name for name in remote.files if name.endswith(".json")])


def downloaded(source: str, revision: str | None) -> Path | None:
    """An earlier download, if there is one."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, OSError):
        return None


def _snapshot(remote: Remote, names: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(remote.id, revision=remote.revision, allow_patterns=names))
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise UserError(f"{remote.id} cannot be written to the hub's cache: {error.strerror}") from None
        raise UserError(
            f"the download of {remote.id} broke off; the same command goes on ({first_line(error)})"
        ) from None


def first_line(error: Exception) -> str:
    """The message of an error, shortened and without addresses."""
    return re.sub(r" *https?://\S+", "", " ".join(str(error).split()))[:120] or type(error).__name__
