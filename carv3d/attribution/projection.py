"""Random projection of gradients: short vectors whose products are those of the long ones, nearly.

A count sketch: every parameter goes, with a random sign, to one random place. Its products have the mean and, but for
a term that it has less of, the variance of a dense matrix of random signs (TRAK's, arXiv 2303.14186), about
`(|x|^2 |y|^2 + <x, y>^2) / D`, at 1 / D of the work, and there is no matrix. Other libraries: the
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
    """A count sketch a layer, so that a layer's gradients are done with before the next one's are made.

    Attributes:
        dimension: D, of what comes out.
    """

    def __init__(self, sizes: Mapping[str, int], dimension: int, seed: int, device: torch.device | str = "cpu") -> None:
        """Draw it.

        Args:
            sizes: number of parameters of every layer, in order.
            dimension: D.
            seed: of all draws; they are made on the CPU, so that every device has the same.
            device: where gradients will be.

        Raises:
            UserError: D is above the number of parameters: there is nothing to be made shorter.
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
        """Of the gradients of N rows, a layer at a time.

        Returns:
            (N, D) projected, and (N,) the norms of what was projected, float32.
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
