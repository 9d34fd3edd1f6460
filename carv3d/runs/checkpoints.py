"""Checkpoints that stay whole if the process is killed at any moment, and whose damage is detected.

One checkpoint is a folder `step_001000` with `scene.safetensors` (the result of the training: enough to render), and
`state.safetensors` and `state.json` (enough to go on). `state.json` holds the SHA-256 of the
other two. Other pipelines name the first file after what they train.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as bytes_from_tensors
from torch import Tensor

from carv3d.errors import UserError
from carv3d.runs.storage import disk_errors, sync_folder, write_synced

log = logging.getLogger(__name__)

PICKLES = (".pt", ".pth", ".ckpt", ".pkl", ".bin")
"""Endings of files that may run code when they are opened; carv3d never opens them."""


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint."""

    step: int
    trained: dict[str, Tensor]  # the result of the training, on the CPU
    state: dict[str, Tensor]  # all else that the next step depends on, on the CPU
    info: dict[str, Any]
    path: Path


def refuse_pickle(path: Path) -> None:
    """Raise a UserError if the name is that of a pickle file."""
    if path.suffix.lower() in PICKLES and not path.is_dir():
        raise UserError(
            f"{path} is not opened: {path.suffix} files may run code when they are loaded; "
            "carv3d reads only the safetensors in its own run folders"
        )


class Checkpoints:
    """The `checkpoints` folder of a run.

    Only the process that holds the run's lock may call `save` and `clean`.
    """

    def __init__(self, folder: Path, trained: str = "scene") -> None:
        self.folder, self.trained = folder, trained

    def paths(self) -> dict[int, Path]:
        """The folders of all complete checkpoints by step, oldest first; not checked for damage."""
        found: dict[int, Path] = {}
        for path in self.folder.glob("*") if self.folder.is_dir() else []:
            # `save` moves an old checkpoint of the same step aside; it counts until the new one is in place.
            match = re.fullmatch(r"step_(\d+)|\.step_(\d+)\.old", path.name)
            if match and path.is_dir():
                step = int(match[1] or match[2])
                if match[1] or step not in found:
                    found[step] = path
        return dict(sorted(found.items()))

    def save(
        self,
        step: int,
        trained: Mapping[str, Tensor],
        state: Mapping[str, Tensor],
        info: Mapping[str, Any],
        *,
        keep: int,
    ) -> Path:
        """Write a checkpoint. If the process is killed, the old ones are left, with or without the new one.

        Checkpoints of later steps are removed: they belong to an abandoned continuation.

        Args:
            step: how many steps have been done.
            trained, state: tensors of any device.
            info: JSON values.
            keep: how many of the newest checkpoints stay.

        Raises:
            UserError: the disk is full, or may not be written to.
        """
        path = self.folder / f"step_{step:06d}"
        files = {f"{self.trained}.safetensors": _to_bytes(trained), "state.safetensors": _to_bytes(state)}
        sums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        meta = {"step": step, "sha256": sums, "info": dict(info)}
        with disk_errors(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary = self.folder / f".{path.name}-new.tmp"
            shutil.rmtree(temporary, ignore_errors=True)
            try:
                temporary.mkdir()
                for name, data in files.items():
                    write_synced(temporary / name, data)
                write_synced(temporary / "state.json", json.dumps(meta, indent=1).encode())
                sync_folder(temporary)
                self._put(temporary, path, self.folder / f".{path.name}.old")
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
            sync_folder(self.folder)
            steps = list(self.paths())
            for other in [s for s in steps if s > step] + [s for s in steps if s <= step][:-keep]:
                self._remove(self.paths()[other])
        return path

    def load(self, step: int | None = None) -> Checkpoint:
        """The checkpoint of a step, or the newest one that is whole.

        If the newest is damaged and an older one is whole, the older one is returned and a warning is logged.

        Raises:
            UserError: there is none, or it is damaged; the message names it and says what to use instead.
        """
        paths = self.paths()
        if not paths:
            for path in [*self.folder.parent.glob("*"), *self.folder.glob("*")]:
                refuse_pickle(path)
            raise UserError(f"no checkpoint in {self.folder}; start the run anew")
        if step is not None and step not in paths:
            raise UserError(f"no checkpoint of step {step}; there are those of {', '.join(map(str, paths))}")
        damage: dict[int, str] = {}
        for candidate in [step] if step is not None else reversed(paths):
            try:
                checkpoint = _read(paths[candidate], candidate, self.trained)
            except _DamageError as error:
                damage[candidate] = str(error)
                continue
            for other, reason in damage.items():
                log.warning("%s is damaged (%s); using that of step %d", paths[other], reason, candidate)
            return checkpoint
        if self.paths() != paths:
            return self.load(step)  # the run is still going on, and has replaced them by newer ones
        newest = next(iter(damage))
        whole = [other for other in paths if other not in damage and _is_whole(paths[other], other, self.trained)]
        advice = f"use the one of step {whole[-1]}" if whole else "no other one is whole; start the run anew"
        raise UserError(f"checkpoint {paths[newest]} is damaged: {damage[newest]}; {advice}")

    def clean(self) -> None:
        """Remove or complete what an interrupted `save` left."""
        for path in self.folder.glob(".step_*.old") if self.folder.is_dir() else []:
            final = self.folder / path.name.removeprefix(".").removesuffix(".old")
            if final.exists():
                self._remove(path)
            else:
                os.rename(path, final)
        for path in self.folder.glob(".*.tmp"):
            shutil.rmtree(path, ignore_errors=True)

    def _put(self, temporary: Path, path: Path, aside: Path) -> None:
        """Move a finished folder to its name, over one that may be there."""
        if path.exists():
            if aside.exists():
                self._remove(aside)
            os.rename(path, aside)
        os.rename(temporary, path)
        if aside.exists():
            self._remove(aside)

    def _remove(self, path: Path) -> None:
        """It is renamed first, so that an interrupted removal leaves nothing that looks like a damaged checkpoint."""
        doomed = self.folder / f".{path.name.strip('.')}-doomed.tmp"
        shutil.rmtree(doomed, ignore_errors=True)
        os.rename(path, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


class _DamageError(Exception):
    """Why a checkpoint cannot be used."""


def _to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    # Copies, because safetensors refuses tensors that share memory.
    return bytes_from_tensors({k: t.detach().to("cpu", copy=True).contiguous() for k, t in tensors.items()})


def _read(path: Path, step: int, trained: str) -> Checkpoint:
    try:
        meta = json.loads((path / "state.json").read_bytes())
        tensors = {}
        for name in (trained, "state"):
            data = (path / f"{name}.safetensors").read_bytes()
            if hashlib.sha256(data).hexdigest() != meta["sha256"][f"{name}.safetensors"]:
                raise _DamageError(f"{name}.safetensors has changed since it was written")
            tensors[name] = tensors_from_bytes(data)
        if meta["step"] != step:
            raise _DamageError(f"it is of step {meta['step']}")
        return Checkpoint(step, tensors[trained], tensors["state"], dict(meta["info"]), path)
    except FileNotFoundError as error:
        for other in path.glob("*"):
            refuse_pickle(other)
        raise _DamageError(f"{Path(error.filename).name} is missing") from error
    except (ValueError, KeyError, TypeError) as error:
        raise _DamageError("state.json cannot be read") from error
    except SafetensorError as error:
        raise _DamageError("it is not safetensors") from error
    except OSError as error:
        raise _DamageError((error.strerror or str(error)).lower()) from error


def _is_whole(path: Path, step: int, trained: str) -> bool:
    try:
        _read(path, step, trained)
    except (_DamageError, UserError):
        return False
    return True
