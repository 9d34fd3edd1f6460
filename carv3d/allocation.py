"""K that chooses itself: `guidance.resamples=auto`.

The variance of a step is `A + V(K)` times a constant, its cost `a + K` in units of one draw. Every few steps a probe
measures A and V at the present K, at the render in hand; K moves, one level at a time, to where variance times cost
is least. Where K has not been, V is taken to go on as 1 / K from the nearest level where it has: coupled noise
makes pairs worth more than two draws, so levels remember what they were found to be worth.

The estimate itself never uses a probe's draws, and K depends on past steps only: nothing is biased.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from carv3d.accounting import Gradient

LEVELS = (1, 2, 4, 6, 8, 12, 16, 24, 32)  # even beyond 1, so that antithetic noise leaves none alone
START = 4
EVERY = (13, 27)  # steps between probes, drawn anew each time: a sequence of cameras must not meet a fixed stride
FEWEST = 5  # pairs of probes before K moves
MEMORY = 0.9  # of the running means, a probe


class Allocation:
    """The running means, and what follows from them.

    Attributes:
        resamples: K of the step to come.
        cost_ratio: c_up / c_denoise, measured once a run; None before.
        between: A, running mean; of a step's gradient.
        within: K V(K) by level, running means; 0 where K has not been.
    """

    def __init__(self, cost_ratio: float | None = None) -> None:
        self.resamples, self.cost_ratio = START, cost_ratio
        self.between = 0.0
        self.within = dict.fromkeys(LEVELS, 0.0)
        self._visits = dict.fromkeys(LEVELS, 0)
        self._next = 0
        self._last: Tensor | None = None
        self._last_noise = 0.0

    @property
    def pairs(self) -> int:
        """Of successive probes, so far."""
        return max(sum(self._visits.values()) - 1, 0)

    def due(self, step: int) -> bool:
        """Whether step `step`, counted from 0, has a probe."""
        return step >= self._next

    def probe(self, step: int, z: Tensor, first: Tensor, second: Tensor, parameters: Sequence[Tensor]) -> None:
        """Look at the step in hand, and move K if it is time.

        Waits for the device: two numbers are fetched.

        Args:
            step: counted from 0.
            z: (R, *shape) latents with their graph, which is kept.
            first, second: (R, *shape) two independent estimates of fbar with the present K.
            parameters: what is trained.
        """
        gradient = Gradient(z, parameters)
        pair = torch.stack([gradient(fbar / len(z)) for fbar in (first, second)])
        mean = pair.mean(0)
        if self._last is not None and self._last.shape != mean.shape:
            self._last = None  # the scene's parts are others by now
        last = mean if self._last is None else self._last.to(mean.device)
        squares = [
            (pair[0] - pair[1]).square().sum(dtype=torch.float64),
            (mean - last).square().sum(dtype=torch.float64),
        ]
        noise, distance = (torch.stack(squares) / 2).tolist()
        if self._last is not None:
            # Two renders' means differ by the view and by their own noise; the scene hardly moves in between.
            between = distance - (noise + self._last_noise) / 4
            self.between = _running(self.between, between, self.pairs)
        level = self.resamples
        self.within[level] = _running(self.within[level], level * noise, self._visits[level])
        self._visits[level] += 1
        self._last, self._last_noise = mean, noise
        low, high = EVERY
        rng = torch.Generator().manual_seed(self.pairs)
        self._next = step + int(torch.randint(low, high + 1, (), generator=rng))
        if self.pairs >= FEWEST:
            self._move()

    def waste(self, resamples: int) -> float:
        """Variance times cost at a level, up to a constant: what ECM is the inverse of."""
        if self.cost_ratio is None:
            raise ValueError("the cost ratio is not known yet")
        known = [level for level in LEVELS if self._visits[level]]
        within = self.within[min(known, key=lambda level: (abs(LEVELS.index(level) - LEVELS.index(resamples)), level))]
        between = max(self.between, 1e-3 * within)
        return (between + within / resamples) * (self.cost_ratio + resamples)

    def _move(self) -> None:
        here = LEVELS.index(self.resamples)
        best = min(LEVELS[max(here - 1, 0) : here + 2], key=self.waste)
        if self.waste(best) < 0.98 * self.waste(self.resamples):  # not to and fro over nothing
            self.resamples = best

    def state(self) -> dict[str, Tensor]:
        """All that the next step depends on."""
        if self.cost_ratio is None or self._last is None:
            return {}
        numbers = [self.resamples, self.cost_ratio, self.between, self._next, self._last_noise]
        levels = [[self.within[level], self._visits[level]] for level in LEVELS]
        return {
            "allocation.numbers": torch.tensor(numbers, dtype=torch.float64),
            "allocation.levels": torch.tensor(levels, dtype=torch.float64),
            "allocation.last": self._last,
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        resamples, self.cost_ratio, self.between, following, self._last_noise = state["allocation.numbers"].tolist()
        self.resamples, self._next = int(resamples), int(following)
        for level, (within, visits) in zip(LEVELS, state["allocation.levels"].tolist(), strict=True):
            self.within[level], self._visits[level] = within, int(visits)
        self._last = state["allocation.last"]


def _running(mean: float, value: float, count: int) -> float:
    """A running mean that forgets; a plain one of the first values."""
    return mean + max(1 - MEMORY, 1 / (count + 1)) * (value - mean)
