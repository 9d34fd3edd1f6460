"""Score distillation sampling (Poole et al., "DreamFusion", arXiv 2209.14988, equation 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from carv3d.objectives.base import Draw, Objective

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Sds(Objective):
    """Score distillation sampling: the guided prediction minus the noise."""

    def residual(self, draw: Draw) -> Tensor:
        """`eps_guided - eps`."""
        return draw.guided(draw.predict()) - draw.eps
