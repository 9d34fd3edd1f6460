"""A cache of prompt embeddings: text encoders are large, and a run has few texts."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from carv3d.errors import UserError
from carv3d.runs.storage import remove_forgotten, replace_file
from carv3d.teachers.families import PromptEmbeddings

log = logging.getLogger(__name__)


class EmbeddingCache:
    """Prompt embeddings of texts, in memory and in a folder.

    Attributes:
        folder: of the cache, one file for each text; None for no files.
    """

    def __init__(
        self, embed: Callable[[Sequence[str]], PromptEmbeddings], key: str, device: torch.device, folder: Path | None
    ) -> None:
        """Set up.

        Args:
            embed: computes the embeddings of V texts, (V, ...) each.
            key: of everything that the embeddings depend on besides the text: model, revision, precision.
            device: of the embeddings.
            folder: see above.
        """
        self._embed, self._key, self._device, self.folder = embed, key, device, folder
        self._one = threading.Lock()
        self._known: dict[str, PromptEmbeddings] = {}
        self._last: tuple[tuple[str, ...], PromptEmbeddings] = ((), {})

    def __call__(self, texts: Sequence[str]) -> PromptEmbeddings:
        """Embeddings (V, ...) of V texts; unknown texts are encoded together. The result must not be changed.

        Several threads may ask.
        """
        with self._one:
            return self._found(texts)

    def _found(self, texts: Sequence[str]) -> PromptEmbeddings:
        if self._last[0] == tuple(texts):  # of the last call
            return self._last[1]
        for text in texts:
            if text not in self._known and (found := self._read(text)) is not None:
                self._known[text] = found
        missing = [text for text in dict.fromkeys(texts) if text not in self._known]
        if missing:
            new = self._embed(missing)
            for row, text in enumerate(missing):
                self._known[text] = {name: states[row : row + 1].clone() for name, states in new.items()}
                self._write(text)
        first = self._known[texts[0]]
        embeddings = {name: torch.cat([self._known[text][name] for text in texts]) for name in first}
        self._last = (tuple(texts), embeddings)
        return embeddings

    def _path(self, text: str) -> Path | None:
        if self.folder is None:
            return None
        name = hashlib.sha256("\0".join([self._key, text]).encode()).hexdigest()
        return self.folder / f"{name}.safetensors"

    def _read(self, text: str) -> PromptEmbeddings | None:
        path = self._path(text)
        if path is None or not path.is_file():
            return None
        try:
            return load_file(path, device=str(self._device))
        except (SafetensorError, OSError):  # the file is written again
            log.warning("%s is damaged and made anew", path)
            return None

    def _write(self, text: str) -> None:
        path = self._path(text)
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, save({name: states.cpu().contiguous() for name, states in self._known[text].items()}))
            remove_forgotten(path.parent)
        except (OSError, UserError, SafetensorError) as error:  # without the cache only time is lost
            log.warning("the text cache %s cannot be written (%s)", path.parent, error)
