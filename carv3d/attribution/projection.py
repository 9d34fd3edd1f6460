"""Random projection of gradients: short vectors whose inner products approximate those of the long ones.

A count sketch adds every parameter, with a random sign, at one random place. The mean of its inner products is exact;
their variance is at most that of a dense matrix of random signs (TRAK's, arXiv 2303.14186), about
`(|x|^2 |y|^2 + <x, y>^2) / D`, at 1 / D of the work and without a matrix. Other libraries: the
projector of `traker` for CPUs makes its dense matrix again, block by block, for every batch (times are in
docs/how-to/attribution.md); scikit-learn's keeps its matrix in memory; the fast ones of `traker` and `dattri`
need CUDA.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from carv3d.accounting import CountSketch
from carv3d.errors import UserError


class Projection:
    """A count sketch for each layer, so that a layer's gradients can be freed before the next layer's are computed.

    Attributes:
        dimension: D, of the output.
    """

    def __init__(self, sizes: Mapping[str, int], dimension: int, seed: int, device: torch.device | str = "cpu") -> None:
        """Draw it.

        Args:
            sizes: number of parameters of every layer, in order.
            dimension: D.
            seed: of all random numbers; they are drawn on the CPU, so that all devices have the same.
            device: where gradients will be.

        Raises:
            UserError: D is larger than the number of parameters.
        """
        total = sum(sizes.values())
        if dimension > total:
            raise UserError(
                f"projection.dimension={dimension} is above the {total} parameters of the chosen layers: lower it, or "
                "choose more layers"
            )
        self.dimension = dimension
        rng = torch.Generator().manual_seed(seed)
        self._sketches = {name: CountSketch(size, dimension, rng).to(device) for name, size in sizes.items()}

    def __call__(self, gradients: Iterable[tuple[str, Tensor]]) -> tuple[Tensor, Tensor]:
        """Project the gradients of N rows, layer by layer.

        Returns:
            (N, D) projections, and (N,) the norms of the gradients, float32.
        """
        short: Tensor | None = None
        squares: Tensor | None = None
        for name, gradient in gradients:
            part, square = self._sketches[name](gradient), gradient.square().sum(1)
            short = part if short is None else short + part
            squares = square if squares is None else squares + square
        if short is None or squares is None:
            raise ValueError("no gradients")
        return short, squares.sqrt()
