"""View-dependent prompts: the prompt, and words for the view of each camera.

Poole et al., "DreamFusion" (arXiv 2209.14988), section 3.2, add such words for teachers without camera input.
Perp-Neg (Armandpour et al., arXiv 2304.04968) mixes the embeddings of neighbouring views, and subtracts those of
other views.
"""

from __future__ import annotations

import torch
from torch import Tensor

from carv3d.prompts.config import ViewsConfig

VIEWS = ("front view", "side view", "back view", "overhead view")
_FRONT, _SIDE, _BACK, _OVERHEAD = range(len(VIEWS))

# (a, b, c) of a negative's weight `-(a exp(-b r) + c)`, where r is the share of the nearer of the two mixed views.
# Functional form from Perp-Neg's section 4.2, numbers as in threestudio's defaults.
_FRONT_OF_FRONT_SIDE = (4.0, 0.5, -2.426)
_SIDE_OF_FRONT_SIDE = (4.0, 0.5, -2.426)
_SIDE_OF_SIDE_BACK = (1.0, 0.5, -0.606)
_FRONT_OF_SIDE_BACK = (1.0, 0.5, 0.967)


class ViewPrompts(ViewsConfig):
    """Which view a camera sees, and what to append to the prompt for it.

    With Perp-Neg, the words of neighbouring views are mixed by azimuth, and other views become negatives; `front` and
    `back` do not matter then.
    """

    def index(self, azimuth: Tensor, elevation: Tensor) -> Tensor:
        """(R,) indices into `VIEWS` of cameras at these angles in degrees, each (R,)."""
        azimuth = _wrapped(azimuth)
        view = torch.full_like(azimuth, _SIDE, dtype=torch.long)
        view[azimuth.abs() < self.front] = _FRONT
        view[azimuth.abs() > 180.0 - self.back] = _BACK
        view[elevation > self.overhead] = _OVERHEAD
        return view

    def shares(self, azimuth: Tensor, elevation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The mixture of `VIEWS` for each camera (R,).

        Returns:
            (R, 4) of the prompt; (R, B, 4) of the negatives; (R, B) their weights. B is 2 with Perp-Neg, else 0.
        """
        one = torch.eye(len(VIEWS), device=azimuth.device)
        if not self.perp_neg:
            cond = one[self.index(azimuth, elevation)]
            return cond, cond.new_zeros(len(cond), 0, len(VIEWS)), cond.new_zeros(len(cond), 0)
        turn = _wrapped(azimuth).abs().float() / 90
        ahead, above = (turn < 1)[:, None], (elevation > self.overhead)[:, None]
        of_front, of_side = (1 - turn)[:, None], (2 - turn)[:, None]
        to_side = of_front * one[_FRONT] + (1 - of_front) * one[_SIDE]
        to_back = of_side * one[_SIDE] + (1 - of_side) * one[_BACK]
        cond = torch.where(above, one[_OVERHEAD], torch.where(ahead, to_side, to_back))
        negatives = torch.stack([one[_FRONT], one[_SIDE]]).expand(len(cond), -1, -1)
        weights = torch.where(
            ahead,
            torch.cat([_decay(_FRONT_OF_FRONT_SIDE, of_front), _decay(_SIDE_OF_FRONT_SIDE, 1 - of_front)], 1),
            torch.cat([_decay(_FRONT_OF_SIDE_BACK, of_side), _decay(_SIDE_OF_SIDE_BACK, of_side)], 1),
        )
        return cond, negatives, torch.where(above, 0.0, weights)


def _wrapped(azimuth: Tensor) -> Tensor:
    return (azimuth + 180.0) % 360.0 - 180.0


def _decay(numbers: tuple[float, float, float], share: Tensor) -> Tensor:
    a, b, c = numbers
    return -(a * torch.exp(-b * share) + c)


def with_views(prompt: str) -> list[str]:
    """The prompt with each of `VIEWS` appended, in their order."""
    return [f"{prompt}, {view}" for view in VIEWS]
