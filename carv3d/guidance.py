"""From raw predictions to one: classifier-free guidance, Perp-Neg, or none. N draws, B negatives.

A score model predicts the noise under several conditions, its *branches*: "uncond" (the negative prompt, or no
text), "cond" (the prompt) and "negatives" (Perp-Neg's other views). A guidance names the branches that it needs and
combines them to one prediction. diffusers calls such objects guiders; these have no state and no schedule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

Branch = Literal["uncond", "cond", "negatives"]


class Guidance(Protocol):
    """Combines the predictions of branches to one.

    Attributes:
        branches: the needed ones; "cond" is always one.
    """

    @property
    def branches(self) -> tuple[Branch, ...]:
        """See the class."""
        ...

    def __call__(self, raw: Mapping[Branch, Tensor], condition: Any) -> Tensor:
        """Combine raw predictions, (N, ...) each and (N, B, ...) for negatives, to one (N, ...).

        Args:
            raw: by branch.
            condition: of the score model, N rows.
        """
        ...


@dataclass(frozen=True)
class Unguided:
    """The conditional prediction itself."""

    branches: ClassVar[tuple[Branch, ...]] = ("cond",)

    def __call__(self, raw: Mapping[Branch, Tensor], condition: Any) -> Tensor:
        """See `Guidance`."""
        return raw["cond"]


@dataclass(frozen=True)
class ClassifierFree:
    """Classifier-free guidance, `uncond + scale (cond - uncond)` (Ho and Salimans, arXiv 2207.12598).

    Attributes:
        scale: at least 0; 1 is the conditional prediction.
    """

    scale: float
    branches: ClassVar[tuple[Branch, ...]] = ("uncond", "cond")

    def __call__(self, raw: Mapping[Branch, Tensor], condition: Any) -> Tensor:
        """See `Guidance`."""
        return raw["uncond"] + self.scale * (raw["cond"] - raw["uncond"])


@dataclass(frozen=True)
class PerpNeg:
    """Perp-Neg (Armandpour et al., arXiv 2304.04968, algorithm 1): the part of every negative that is perpendicular
    to cond.

    `uncond + scale (d + sum_b weights_b perpendicular(negatives_b - uncond, d))` with `d = cond - uncond`. A negative
    that is the unconditional prediction itself changes nothing. The weights (N, B), at most 0, are `condition.weights`.

    Attributes:
        scale: of the guidance.
    """

    scale: float
    branches: ClassVar[tuple[Branch, ...]] = ("uncond", "cond", "negatives")

    def __call__(self, raw: Mapping[Branch, Tensor], condition: Any) -> Tensor:
        """See `Guidance`."""
        uncond, negatives, weights = raw["uncond"], raw["negatives"], condition.weights
        d = raw["cond"] - uncond
        total = d
        for b in range(negatives.shape[1]):
            weight = weights[:, b].view(-1, *[1] * (d.ndim - 1))
            total = total + weight * perpendicular(negatives[:, b] - uncond, d)
        return uncond + self.scale * total


def guidance_of(scale: float, *, perp_neg: bool = False) -> Guidance:
    """The guidance of a scale. At scale 1 without Perp-Neg the unconditional branch is not needed.

    Raises:
        ValueError: a scale below 0, or not finite.
    """
    if not 0 <= scale < float("inf"):
        raise ValueError(f"the guidance scale must be a number of at least 0, not {scale!r}")
    if perp_neg:
        return PerpNeg(scale)
    return Unguided() if scale == 1 else ClassifierFree(scale)


def perpendicular(x: Tensor, y: Tensor) -> Tensor:
    """The part of x (N, ...) that is perpendicular to y (N, ...), each of the N by itself; x where y is zero."""
    x_flat, y_flat = x.flatten(1), y.flatten(1)
    along = (x_flat * y_flat).sum(1) / y_flat.square().sum(1).clamp_min(torch.finfo(y.dtype).tiny)
    return x - along.view(-1, *[1] * (x.ndim - 1)) * y
