"""A score model with an unconditional and a conditional branch whose expectations can be integrated."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from carv3d.guidance import Branch
from carv3d.teachers.exact import ExactCondition
from tests.two_points import TwoPointTeacher


class TwoBranches(TwoPointTeacher):
    """Data of two points: `first` with probability .3 given the condition, and with .8 without it."""

    branches: tuple[Branch, ...] = ("uncond", "cond")
    SHARES = {"cond": 0.3, "uncond": 0.8}

    def predict(
        self, z_t: Tensor, t: Tensor, condition: ExactCondition, branches: Sequence[Branch]
    ) -> dict[Branch, Tensor]:
        found: dict[Branch, Tensor] = {}
        for branch in branches:
            self.share = self.SHARES[branch]
            found |= {branch: super().predict(z_t, t, self.rows(len(z_t)), ("cond",))["cond"]}
        return found

    def expected_eps(self, z: Tensor, p: Tensor, w: Tensor, branch: Branch) -> Tensor:
        """E[w(t) eps_hat] of a branch: E[w(t) (eps_hat - eps)], since eps has mean zero and does not depend on t."""
        self.share = self.SHARES[branch]
        return self.expectation(z, p, w)


def two_branches() -> tuple[TwoBranches, Tensor]:
    """The model in float64, and latents (1, 2, 2)."""
    g = torch.Generator().manual_seed(1)
    first, second = torch.randn((2, 1, 2, 2), generator=g, dtype=torch.float64)
    return TwoBranches(first, second), torch.randn(1, 2, 2, generator=g, dtype=torch.float64)
