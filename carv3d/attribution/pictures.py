"""Captioned pictures: the training set, and the queries."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


class Pictures(ABC):
    """An ordered set of N captioned pictures.

    Attributes:
        source: where the pictures are from, for reports.
        names: N, all different.
        captions: N.
        camera: (N, 4) of `camera_vector`; zeros for an unknown camera.
        classes: N, the known classes; empty if unknown.
    """

    source: str
    names: Sequence[str]
    captions: Sequence[str]
    camera: Tensor
    classes: Sequence[str]

    @abstractmethod
    def load(self, rows: Sequence[int]) -> Tensor:
        """The pictures (n, 3, H, W) in [0, 1] of some rows, all of one size."""

    @abstractmethod
    def digest(self) -> str:
        """A hash of names, captions, cameras and pictures."""


@dataclass(frozen=True)
class InMemory(Pictures):
    """Pictures in memory. `images` is (N, 3, H, W) in [0, 1]; the rest as in `Pictures`."""

    source: str
    names: Sequence[str]
    captions: Sequence[str]
    camera: Tensor
    images: Tensor
    classes: Sequence[str] = ()

    def load(self, rows: Sequence[int]) -> Tensor:
        """See `Pictures`."""
        return self.images[list(rows)]

    def digest(self) -> str:
        """See `Pictures`."""
        return digest_of(self, self.images.numpy(force=True).tobytes())


def digest_of(pictures: Pictures, *more: bytes | str) -> str:
    """SHA-256 of names, captions, cameras, and other values that the pictures depend on."""
    found = hashlib.sha256()
    for text in (*pictures.names, *pictures.captions):
        found.update(f"{text}\0".encode())
    found.update(pictures.camera.numpy(force=True).tobytes())
    for part in more:
        found.update(part if isinstance(part, bytes) else part.encode())
    return found.hexdigest()


def unknown_camera(count: int) -> Tensor:
    """(count, 4) zeros, the code of an unknown camera."""
    return torch.zeros(count, 4)
