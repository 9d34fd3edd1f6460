"""Signatures of the training pictures on disk: computed once, memory-mapped for every query.

    gradients.npy   (N, B, D) float16, projected gradients of length 1
    norms.npy       (N, B) float32, of the gradients before projection
    cache.json      the settings behind them, the number of finished pictures, and a checksum of theirs in each file

float16 has a relative rounding error of 2^-11 for an entry, and about 1e-5 for a cosine. Pictures are processed in
order. Each batch is written and synced before `cache.json` counts it, so that a kill loses one batch at most.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
        self._sums = dict.fromkeys(self._files, 0)
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
            rows = np.ascontiguousarray(values.cpu().numpy().astype(kind))
            with disk_errors(path), open(path, "r+b") as file:
                file.seek(len(_header(shape, kind)) + first * rows[0].nbytes)
                file.write(rows.tobytes())
                file.flush()
                os.fsync(file.fileno())
            self._sums[name] = zlib.crc32(rows.tobytes(), self._sums[name])
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
                    file.write(_header(shape, kind))
                    file.truncate(file.tell() + int(np.dtype(kind).itemsize * np.prod(shape)))
        self._count()

    def _open(self) -> None:
        again = f"delete {self.folder}, or give --output another folder"
        try:
            written = json.loads(self._meta.read_text(encoding="utf-8"))
            self.done, old, sums = int(written["done"]), dict(written["recipe"]), dict(written.get("sums", {}))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self._meta} is damaged: {again}") from error
        mine = json.loads(json.dumps(self._recipe))
        for key in {**mine, **old}:
            if mine.get(key) != old.get(key):
                raise UserError(
                    f"the gradients in {self.folder} were made with other {key} ({_shown(old.get(key))}, here "
                    f"{_shown(mine.get(key))}): they say nothing here; {again}"
                )
        for name, (path, kind, shape) in self._files.items():
            row = int(np.dtype(kind).itemsize * np.prod(shape[1:]))
            header = _header(shape, kind)
            if not 0 <= self.done <= shape[0] or not path.is_file():
                raise UserError(f"{path} or {self._meta} is missing or damaged: {again}")
            self._sums[name] = found = _sum(path, header, self.done * row)
            whole = path.stat().st_size == len(header) + shape[0] * row
            if not whole or found < 0 or found != sums.get(name, found):
                raise UserError(f"{path} is damaged: {again}")

    def _count(self) -> None:
        text = json.dumps({"done": self.done, "sums": self._sums, "recipe": self._recipe}, indent=1)
        replace_file(self._meta, f"{text}\n".encode())


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else f"{text[:57]}..."


def _header(shape: tuple[int, ...], kind: str) -> bytes:
    """What is before the numbers."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": kind, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def _sum(path: Path, header: bytes, size: int) -> int:
    """The checksum of so many bytes after the header; -1 if the header is another one, or the file too short."""
    found = 0
    with open(path, "rb") as file:
        if file.read(len(header)) != header:
            return -1
        while size:
            part = file.read(min(size, 2**24))
            if not part:
                return -1
            found = zlib.crc32(part, found)
            size -= len(part)
    return found
