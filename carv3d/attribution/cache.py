"""Signatures of the training pictures on disk: computed once, memory-mapped for every query.

    gradients.npy   (N, B, D) float16, projected gradients of length 1
    norms.npy       (N, B) float32, of the gradients before projection
    cache.json the settings behind them, and the number of finished pictures

float16 has a relative rounding error of 2^-11 for an entry, and about 1e-5 for a cosine. Pictures are processed in
order. Each batch is written and synced before `cache.json` counts it, so that a kill loses one batch at most.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from carv3d.attribution.signatures import Signatures
from carv3d.errors import UserError
from carv3d.runs import disk_errors, replace_file


class Cache:
    """A folder of signatures. One process at a time may write to it.

    Attributes:
        done: number of pictures, from the first, whose signatures are stored.
    """

    def __init__(self, folder: Path, shape: tuple[int, int, int], recipe: Mapping[str, Any]) -> None:
        """Open the signatures in a folder, or create empty files.

        Args:
            folder: made if it is not there.
            shape: (N, B, D).
            recipe: all that signatures depend on, as JSON values.

        Raises:
            UserError: the stored signatures have other settings or are damaged, or the disk has no room.
        """
        self.folder, self._shape, self._recipe = folder, shape, dict(recipe)
        self._meta = folder / "cache.json"
        self._files = {
            "gradients": (folder / "gradients.npy", "<f2", shape),
            "norms": (folder / "norms.npy", "<f4", shape[:2]),
        }
        self.done = 0
        if self._meta.exists():
            self._open()
        else:
            self._begin()

    @property
    def complete(self) -> bool:
        """Whether all pictures are done."""
        return self.done == self._shape[0]

    def append(self, found: Signatures) -> None:
        """Store the signatures of the next n pictures.

        Raises:
            UserError: the disk is full, or may not be written to.
        """
        first, count = self.done, len(found.direction)
        for name, values in (("gradients", found.direction), ("norms", found.norm)):
            path, kind, shape = self._files[name]
            rows = values.cpu().numpy().astype(kind)
            with disk_errors(path), open(path, "r+b") as file:
                file.seek(_header(shape, kind) + first * rows[0].nbytes)
                file.write(np.ascontiguousarray(rows).tobytes())
                file.flush()
                os.fsync(file.fileno())
        self.done += count
        self._count()

    def directions(self) -> NDArray[np.float16]:
        """(N, B, D), memory-mapped."""
        return np.load(self._files["gradients"][0], mmap_mode="r", allow_pickle=False)

    def norms(self) -> NDArray[np.float32]:
        """(N, B)."""
        return np.load(self._files["norms"][0], allow_pickle=False)

    def _begin(self) -> None:
        sizes = [int(np.dtype(kind).itemsize * np.prod(shape)) for _, kind, shape in self._files.values()]
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.folder).free
            if sum(sizes) > free:
                raise UserError(
                    f"the gradients of {self._shape[0]:,} pictures x {self._shape[1]} draws take "
                    f"{sum(sizes) / 1e9:.1f} GB and {self.folder} has room for {free / 1e9:.1f} GB: lower data.items, "
                    "draws.count or projection.dimension, or give --output another disk"
                )
            for path, kind, shape in self._files.values():
                with open(path, "wb") as file:
                    _write_header(file, shape, kind)
                    file.truncate(_header(shape, kind) + int(np.dtype(kind).itemsize * np.prod(shape)))
        self._count()

    def _open(self) -> None:
        again = f"delete {self.folder}, or give --output another folder"
        try:
            written = json.loads(self._meta.read_text(encoding="utf-8"))
            self.done, old = int(written["done"]), dict(written["recipe"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self._meta} is damaged: {again}") from error
        mine = json.loads(json.dumps(self._recipe))
        for key in {**mine, **old}:
            if mine.get(key) != old.get(key):
                raise UserError(
                    f"the gradients in {self.folder} were made with other {key} ({_shown(old.get(key))}, here "
                    f"{_shown(mine.get(key))}): they say nothing here; {again}"
                )
        for path, kind, shape in self._files.values():
            wanted = _header(shape, kind) + int(np.dtype(kind).itemsize * np.prod(shape))
            if not path.is_file() or path.stat().st_size != wanted:
                raise UserError(f"{path} is missing or damaged: {again}")

    def _count(self) -> None:
        text = json.dumps({"done": self.done, "recipe": self._recipe}, indent=1)
        replace_file(self._meta, f"{text}\n".encode())


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else f"{text[:57]}..."


def _write_header(file: BinaryIO, shape: tuple[int, ...], kind: str) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})


def _header(shape: tuple[int, ...], kind: str) -> int:
    """Bytes before the numbers."""
    import io

    stream = io.BytesIO()
    _write_header(stream, shape, kind)
    return stream.tell()
