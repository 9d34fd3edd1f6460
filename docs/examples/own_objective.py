r"""An objective of your own, in one file: `carv3d generate`, `measure`, `compare` and `Carv` all use it.

    PYTHONPATH=docs/examples carv3d generate "a red mushroom" guidance.objective=own_objective.Mixed \
        guidance.objective.share=0.7

The fields of the dataclass are keys of the config, checked as strictly as carv3d's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from carv3d.objectives import Draw, Objective


@dataclass
class Mixed(Objective):
    """A mixture of score distillation and classifier score distillation."""

    share: float = 0.5  # of classifier score distillation

    def residual(self, draw: Draw) -> Tensor:
        """`eps_guided - (1 - share) eps - share eps_cond`: (N, ...) for N draws."""
        raw = draw.predict()  # one call of the network for all branches
        return draw.guided(raw) - (1 - self.share) * draw.eps - self.share * raw["cond"]

    def rules(self, prefix: str) -> Iterator[tuple[str, Any, bool, str]]:
        """Which values are allowed: key, value, whether it is, and what would be."""
        yield f"{prefix}.share", self.share, 0 <= self.share <= 1, "from 0 to 1"
