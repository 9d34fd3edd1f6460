"""K that chooses itself: `guidance.resamples=auto`.

The variance of a step is `A + W / K` times a constant, its cost `a + K` in units of one draw. Every few steps a probe
measures both parts of the variance at the render in hand; K moves, one level at a time, to where their product with
the cost is least. The estimate itself never uses a probe's draws, and K depends on past steps only: nothing is biased.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LEVELS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
START = 4
EVERY = 20  # steps between probes
FEWEST = 5  # probes before K moves
MEMORY = 0.9  # of the running means, a probe


class Allocation:
    """The running means, and what follows from them.

    Attributes:
        resamples: K of the step to come.
        cost_ratio: c_up / c_denoise, measured once a run; None before.
        between: A, running mean; of a step's gradient.
        within: W, that of K = 1.
        probes: so far.
    """

    def __init__(self, cost_ratio: float | None = None) -> None:
        self.resamples, self.cost_ratio = START, cost_ratio
        self.between = self.within = 0.0
        self.probes = 0
        self._last: Tensor | None = None

    def due(self, step: int) -> bool:
        """Whether step `step`, counted from 0, has a probe."""
        return step % EVERY == 0

    def probe(self, z: Tensor, first: Tensor, second: Tensor, parameters: Sequence[Tensor]) -> None:
        """Look at the step in hand, and move K if it is time.

        Waits for the device: two numbers are fetched.

        Args:
            z: (R, *shape) latents with their graph, which is kept.
            first, second: (R, *shape) two independent estimates of fbar with the present K.
            parameters: what is trained.
        """
        pair = torch.stack([self._gradient(z, fbar, parameters) for fbar in (first, second)])
        mean = pair.mean(0)
        within = (pair[0] - pair[1]).square().sum(dtype=torch.float64) / 2
        if self._last is not None:
            # Two renders' means differ by both their own noise and the view's; the scene hardly moves in between.
            between = (mean - self._last).square().sum(dtype=torch.float64) / 2 - within / 2
            noise, view = torch.stack([within * self.resamples, between]).tolist()
            share = max(1 - MEMORY, 1 / (self.probes + 1))
            self.within += share * (noise - self.within)
            self.between += share * (view - self.between)
            self.probes += 1
            if self.probes >= FEWEST:
                self._move()
        self._last = mean

    @staticmethod
    def _gradient(z: Tensor, fbar: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        found = torch.autograd.grad(z, list(parameters), fbar / len(z), retain_graph=True, allow_unused=True)
        parts = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
        return torch.cat([part.flatten() for part in parts])

    def waste(self, resamples: int) -> float:
        """Variance times cost at a K, up to a constant: what ECM is the inverse of."""
        if self.cost_ratio is None:
            raise ValueError("the cost ratio is not known yet")
        between = max(self.between, 1e-3 * self.within)
        return (between + self.within / resamples) * (self.cost_ratio + resamples)

    def _move(self) -> None:
        here = LEVELS.index(self.resamples)
        near = LEVELS[max(here - 1, 0) : here + 2]
        best = min(near, key=self.waste)
        if self.waste(best) < 0.98 * self.waste(self.resamples):  # not to and fro over nothing
            self.resamples = best

    def state(self) -> dict[str, Tensor]:
        """All that the next step depends on."""
        if self.cost_ratio is None:
            return {}
        numbers = [self.resamples, self.cost_ratio, self.between, self.within, self.probes]
        found = {"allocation.numbers": torch.tensor(numbers, dtype=torch.float64)}
        return found if self._last is None else found | {"allocation.last": self._last}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        resamples, self.cost_ratio, self.between, self.within, probes = state["allocation.numbers"].tolist()
        self.resamples, self.probes = int(resamples), int(probes)
        self._last = state.get("allocation.last")
