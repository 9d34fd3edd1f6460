"""Classifier score distillation (Yu et al., arXiv 2310.19415, section 3.2).

SDS with guidance is `(eps_cond - eps) + (scale - 1) (eps_cond - eps_uncond)`: the denoising term and the term of the
implicit text classifier. CSD uses only the second term.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from carv3d.errors import UserError
from carv3d.objectives.base import Draw, Objective

if TYPE_CHECKING:
    from torch import Tensor

    from carv3d.guidance import Guidance
    from carv3d.teachers.base import ScoreModel


@dataclass
class Csd(Objective):
    """Classifier score distillation: what guidance adds to the conditional prediction."""

    def residual(self, draw: Draw) -> Tensor:
        """`eps_guided - eps_cond`, which is `(scale - 1) (eps_cond - eps_uncond)` without Perp-Neg."""
        raw = draw.predict()
        return draw.guided(raw) - raw["cond"]

    def prepare(self, model: ScoreModel, guidance: Guidance, seed: int) -> None:
        """See `Objective`; without guidance the residual is zero."""
        if "uncond" not in model.branches:
            raise UserError(
                "objective csd needs a teacher with an unconditional prediction, which this one has not: use sds"
            )
        if "uncond" not in guidance.branches:
            raise UserError("objective csd is zero at guidance scale 1: set guidance.scale above 1")
