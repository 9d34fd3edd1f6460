"""K that chooses itself: `guidance.resamples=auto`.

The variance of a step is `A + V(K)`, its cost `a + K` in units of one draw. Now and then a probe measures A and V at
the present K, at a scene that stands still: the step's own renders with a second set of draws, and other renders.
K moves, one level at a time, to where variance times cost is least. Where K has not been, V is taken to go on as
1 / K: coupled noise makes pairs worth more than two draws, so levels remember what they were found to be worth. They
forget slowly: the timesteps that are asked for change on the way, and what pairs are worth with them.

Gradients shrink by orders of magnitude in a run. Means over probes would be all about its start, so what is known is
brought to the present size before a new look is added.

The estimate itself never uses a probe's draws, and K depends on past steps only: nothing is biased.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEVELS = (1, 2, 4, 6, 8, 12, 16, 24, 32)  # even beyond 1, so that antithetic noise leaves none alone
START = 4
FIRST, SHARE, MOST = 3, 4, 100  # steps between probes: a quarter of those done, within limits
FEWEST = 7  # probes before K moves
NEEDED = FIRST * (FEWEST - 1) + 1  # steps, those of these probes
MEMORY = 0.8  # of the running means, a probe
SIZE_MEMORY = 0.7  # of the gradients' size, a probe
FORGET = 0.1  # a probe, of what another level beyond 1 was found to be worth
GAIN = 0.02  # that a move must promise: not to and fro over nothing


class Allocation:
    """The running means, and what follows from them.

    Attributes:
        resamples: K of the step to come.
        cost_ratio: c_up / c_denoise, measured once a run; None before.
        between: A, running mean; of a step's gradient.
        within: K V(K) by level where K has been, running means.
        size: A + V(K) at the present K, running geometric mean; 0 before the first look.
        probes: so far, by level.
    """

    def __init__(self, cost_ratio: float | None = None) -> None:
        self.resamples, self.cost_ratio = START, cost_ratio
        self.between = 0.0
        self.within = {START: 0.0}
        self.size = 0.0
        self.probes = {START: 0}
        self._next = 0

    def due(self, step: int) -> bool:
        """Whether step `step`, counted from 0, has a probe."""
        return step >= self._next

    def probe(self, step: int, pair: Tensor, other: Tensor) -> None:
        """Take a look at the scene, and move K if it is time. Waits for the device: two numbers are fetched.

        Args:
            step: counted from 0.
            pair: (2, P) two estimates of one step's gradient with the present K, at the same renders.
            other: (P,) one at other renders of the same scene.
        """
        mean = pair.mean(0)
        squares = [(pair[0] - pair[1]), (mean - other)]
        noise, distance = (torch.stack([x.square().sum(dtype=torch.float64) for x in squares]) / 2).tolist()
        # E distance = A + (V / 2 + V) / 2: the pair's mean has half of one estimate's noise.
        growth = self._grow(distance + 0.25 * noise)
        level, done = self.resamples, sum(self.probes.values())
        self.between = _running(growth * self.between, distance - 0.75 * noise, done)
        self.within = {k: growth * within for k, within in self.within.items()}
        self.within[level] = now = _running(self.within[level], level * noise, self.probes[level])
        self.probes[level] += 1
        for k in set(self.within) - {1, level}:  # a draw that is alone is another thing than pairs: it is kept
            self.within[k] += FORGET * (now - self.within[k])
        self._next = step + min(max(FIRST, step // SHARE), MOST)
        if done + 1 >= FEWEST:
            self._move()

    def _grow(self, total: float) -> float:
        """By what factor the variance of a step has grown since the last probe, as far as one can tell."""
        before = self.size
        self.size = before**SIZE_MEMORY * total ** (1 - SIZE_MEMORY) if before > 0 else total
        return self.size / before if before > 0 else 1.0

    def waste(self, resamples: int) -> float:
        """Variance times cost at a level, up to a constant: what ECM is the inverse of."""
        if self.cost_ratio is None:
            raise ValueError("the cost ratio is not known yet")
        place = LEVELS.index(resamples)
        within = self.within[min(self.within, key=lambda level: (abs(LEVELS.index(level) - place), level))]
        return (max(self.between, 1e-3 * within) + within / resamples) * (self.cost_ratio + resamples)

    def _move(self) -> None:
        here = LEVELS.index(self.resamples)
        best = min(LEVELS[max(here - 1, 0) : here + 2], key=self.waste)
        if self.waste(best) < (1 - GAIN) * self.waste(self.resamples):
            if best not in self.within:  # what is expected counts as a first look
                self.within[best], self.probes[best] = self.within[self.resamples], 1
            self.resamples, self.size = best, 0.0

    def state(self) -> dict[str, Tensor]:
        """All that the next step depends on."""
        if self.cost_ratio is None:
            return {}
        numbers = [self.resamples, self.cost_ratio, self.between, self.size, self._next]
        levels = [[level, self.within[level], self.probes[level]] for level in self.within]
        return {
            "allocation.numbers": torch.tensor(numbers, dtype=torch.float64),
            "allocation.levels": torch.tensor(levels, dtype=torch.float64),
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        resamples, self.cost_ratio, self.between, self.size, following = state["allocation.numbers"].tolist()
        self.resamples, self._next = int(resamples), int(following)
        levels = state["allocation.levels"].tolist()
        self.within = {int(level): within for level, within, _ in levels}
        self.probes = {int(level): int(probes) for level, _, probes in levels}


def _running(mean: float, value: float, count: int) -> float:
    """A running mean that forgets; a plain one of the first values."""
    return mean + max(1 - MEMORY, 1 / (count + 1)) * (value - mean)
