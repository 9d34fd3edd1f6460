"""The variance of a moving average of gradients over successive steps at a frozen scene, for different orders of the
cameras.

Adam uses averages of past gradients. In an average with decay beta, independent noise falls to `(1 - beta) / (1 +
beta)`. Cameras that fill their ranges in order can have less, because the differences of the views cancel.

The mean gradient is measured at a table of cameras and interpolated between them. Variance that the table does not
resolve, and that of timesteps and eps, is counted as independent noise.
"""

from __future__ import annotations

import torch
from torch import Tensor

SINGLES = 4000  # number of cameras for the table's part of one step's variance


def decay(beta: float) -> Tensor:
    """Weights of the steps of a moving average, newest first, truncated; they sum to 1."""
    count = max(1, round(6 / (1 - beta)))
    weights = beta ** torch.arange(count, dtype=torch.float64)
    return weights / weights.sum()


def on_table(points: Tensor, weights: Tensor, rows: int, columns: int, periodic: bool) -> Tensor:
    """The weights of a table's nodes that stand for weighted points, by bilinear interpolation.

    Args:
        points: (..., N, 2) in [0, 1): across the rows (azimuth), across the columns (elevation).
        weights: (N,).
        rows, columns: of the table; nodes are at the centres of the cells.
        periodic: whether the last row is next to the first.

    Returns:
        (..., rows * columns) float64, the same sum as the weights.
    """
    lead = points.shape[:-2]
    x, y = points[..., 0] * rows - 0.5, points[..., 1] * columns - 0.5
    found = torch.zeros(*lead, rows * columns, dtype=torch.float64)
    for dx in (0, 1):
        for dy in (0, 1):
            i, j = x.floor() + dx, y.floor() + dy
            share = (1 - (x - i).abs()) * (1 - (y - j).abs()) * weights
            row = i.long() % rows if periodic else i.long().clamp(0, rows - 1)
            found.scatter_add_(-1, row * columns + j.long().clamp(0, columns - 1), share)
    return found


def resolved_variance(gram: Tensor, nodes: Tensor) -> float:
    """Mean of `(omega - 1/G)^T gram (omega - 1/G)` over node weights omega (S, G): the table's part of the variance.

    Args:
        gram: (G, G) float64, products of the nodes' mean gradients, without their noise.
        nodes: see `on_table`; on average over all cameras every node has the weight 1 / G.
    """
    off = nodes - 1 / gram.shape[0]
    return float(((off @ gram) * off).sum(-1).mean())


def window_variance(
    gram: Tensor, rows: int, columns: int, periodic: bool, points: Tensor, beta: float, between: float, within: float
) -> float:
    """tr Cov of the moving average, over many sequences of cameras.

    Args:
        gram: see `gram_of`, of a table of rows x columns.
        rows, columns, periodic: see `on_table`.
        points: (S, N, 2) the sequences' cameras in [0, 1), N steps as long as `decay(beta)`.
        beta: the average's decay.
        between, within: parts of one step's variance.
    """
    weights = decay(beta)
    single = torch.rand(SINGLES, 1, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one = resolved_variance(gram, on_table(single, torch.ones(1, dtype=torch.float64), rows, columns, periodic))
    rest = max(between - one, 0.0) + within
    resolved = resolved_variance(gram, on_table(points, weights, rows, columns, periodic))
    return resolved + rest * float(weights.square().sum())


def gram_of(first: Tensor, second: Tensor) -> Tensor:
    """(G, G) products of the nodes' means, from two replicates (G, D) whose noise is independent: unbiased."""
    product = first.double() @ second.double().T
    return (product + product.T) / 2
