"""The score of a training picture for a query: the mean cosine of their gradients over the shared draws.

score(q, n) = 1/B sum_b <g_b(q), g_b(n)> / (|g_b(q)| |g_b(n)|)

after CARV (arXiv 2605.21489, data attribution), which follows the cosine of normalised gradients of diffusion losses
with random projections (TRAK, arXiv 2303.14186; Journey-TRAK and D-TRAK for diffusion models).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float32]
_BLOCK = 2**25  # bytes of the file in memory at a time


def scores(
    queries: Tensor, directions: NDArray[np.float16], watch: Callable[[int], None] = lambda done: None
) -> Floats:
    """Scores (Q, N) in one pass over the file.

    Args:
        queries: (Q, B, D) of length 1.
        directions: (N, B, D) of length 1, may be mapped from a file.
        watch: called with the number of finished pictures.
    """
    draws = queries.shape[1]
    rows = max(1, _BLOCK // max(1, directions[:1].nbytes))
    flat = queries.flatten(1).T.float().cpu()
    parts = []
    for first in range(0, len(directions), rows):
        block = torch.from_numpy(np.asarray(directions[first : first + rows]).astype(np.float32))
        parts.append(block.flatten(1) @ flat / draws)
        watch(min(first + rows, len(directions)))
    return torch.cat(parts).T.contiguous().numpy()


def ends(of: Floats, count: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """(Q, count) indices of the highest scores, best first, and of the lowest, worst first; ties by index."""
    order = np.argsort(-of, axis=1, kind="stable")
    return order[:, :count], order[:, ::-1][:, :count]


def share_of_class(top: NDArray[np.intp], classes: list[str], wanted: list[str]) -> float:
    """Share of the top pictures (Q, k) whose class is that of their query."""
    return float(np.mean([[classes[n] == kind for n in row] for row, kind in zip(top, wanted, strict=True)]))
