"""The condition of a pipeline's network: texts, mixtures of texts, cameras."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from carv3d.teachers.families import PromptEmbeddings


@dataclass(frozen=True)
class TextCondition:
    """The condition of N views. Each text is a mixture of V texts.

    Attributes:
        embeddings: of the V texts, shared by all views.
        uncond, cond: (N, V) shares of the texts, which sum to 1.
        negatives: (N, B, V) of Perp-Neg's negatives; B may be 0.
        weights: (N, B), at most 0.
        camera: (N, 4) camera vectors, or None for a teacher without camera input.
    """

    embeddings: PromptEmbeddings
    uncond: Tensor
    cond: Tensor
    negatives: Tensor
    weights: Tensor
    camera: Tensor | None

    def __len__(self) -> int:
        return len(self.cond)

    def __getitem__(self, rows: Tensor) -> TextCondition:
        camera = None if self.camera is None else self.camera[rows]
        return TextCondition(
            self.embeddings, self.uncond[rows], self.cond[rows], self.negatives[rows], self.weights[rows], camera
        )

    def mixed(self, shares: Tensor) -> PromptEmbeddings:
        """The mixed embeddings (N, ...) for shares (N, V) of the texts."""
        return {
            name: torch.einsum("nv,v...->n...", shares.to(states.dtype), states)
            for name, states in self.embeddings.items()
        }


def joined(conditions: Sequence[TextCondition]) -> TextCondition:
    """The rows of several conditions as one; their texts are kept side by side."""
    embeddings = {name: torch.cat([one.embeddings[name] for one in conditions]) for name in conditions[0].embeddings}
    counts = [one.cond.shape[-1] for one in conditions]
    total, before = sum(counts), 0
    parts: dict[str, list[Tensor]] = {"uncond": [], "cond": [], "negatives": []}
    for one, count in zip(conditions, counts, strict=True):
        for name, rows in parts.items():
            rows.append(torch.nn.functional.pad(getattr(one, name), (before, total - before - count)))
        before += count
    uncond, cond, negatives = (torch.cat(rows) for rows in parts.values())
    cameras = [one.camera for one in conditions if one.camera is not None]
    weights = torch.cat([one.weights for one in conditions])
    return TextCondition(embeddings, uncond, cond, negatives, weights, torch.cat(cameras) if cameras else None)
