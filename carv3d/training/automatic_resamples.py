"""The choice of K during a run: `guidance.resamples=auto`.

A step with K resamples has the variance `A + V(K)` and the cost `a + K`, in units of one draw. At some steps, a probe
measures A and V at the present K without changing the scene: it draws a second time for the step's own renders, and
it takes the gradient of other renders. Then K moves by at most one level, towards the smallest product of variance
and cost. At a level that K has not had, V is assumed to be proportional to 1 / K. At a level that it has had, the
measured value is used, because coupled noises make a pair of draws worth more than two independent draws. Measured
values are updated slowly, since the timestep range changes during the run.

Gradients shrink by orders of magnitude in a run. A plain mean over probes would be dominated by the start of the run.
So the running means are rescaled to the present size of the gradients before a new measurement is added.

The estimate of a step never uses the draws of a probe, and K depends on past steps only. So the estimate is unbiased.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from carv3d.accounting import CostMeter, Gradient
from carv3d.estimator import Estimate
from carv3d.training.hooks import StepHook

if TYPE_CHECKING:
    from carv3d.training.trainer import Trainer

LEVELS = (1, 2, 4, 6, 8, 12, 16, 24, 32)  # even above 1, so that every antithetic noise has its opposite
START = 4
FIRST, SHARE, MOST = 3, 4, 100  # steps between probes: 1 / SHARE of the steps done, from FIRST to MOST
FEWEST = 7  # probes before K moves
NEEDED = FIRST * (FEWEST - 1) + 1  # steps before K moves
MEMORY = 0.8  # weight of the past in the running means
SIZE_MEMORY = 0.7  # weight of the past in the running size of the gradients
FORGET = 0.1  # weight of a new probe in the values of the other levels above 1
GAIN = 0.02  # relative improvement that a move must promise; it keeps K from alternating between equal levels
COST_ROUNDS = 5  # rounds of timed steps for the cost ratio


class AutomaticResamples(StepHook):
    """Measures, with probes within the steps, what K = `Allocation.resamples` should be, and sets it."""

    def __init__(self) -> None:
        self.allocation = Allocation()
        self._pair: Tensor | None = None  # two estimates of this step's gradient, if it has a probe

    @property
    def extra_draws(self) -> int:
        """A probe draws twice more."""
        return 2 if self._pair is not None else 0

    def before_step(self, trainer: Trainer) -> None:
        """Set K. Before the first step, measure the costs of a render and of a draw."""
        if self.allocation.cost_ratio is None:
            self.allocation.cost_ratio = cost_ratio(trainer)
        trainer.carv.resamples = self.allocation.resamples
        self._pair = None

    def after_estimate(self, trainer: Trainer, z: Tensor, condition: Any, found: Estimate) -> None:
        """Take two gradients of the same renders, while the graph is in memory."""
        if not self.allocation.due(trainer.step_count):
            return
        with trainer.clock("probe"):
            gradient, again = Gradient(z, trainer.parameters()), trainer.carv.estimate(z, condition, trainer.rng)
            self._pair = torch.stack([gradient(one.fbar / len(z)) for one in (found, again)])

    def after_backward(self, trainer: Trainer) -> None:
        """Take the gradient of other renders, when the memory of the step's graph is free."""
        if self._pair is None:
            return
        with trainer.clock("probe"):
            renders, rng = trainer.config.guidance.renders, trainer.rng
            _, z, condition = trainer.look(trainer.sampler.of_other_run(renders, rng), rng)
            other = Gradient(z, trainer.parameters())(trainer.carv.estimate(z, condition, rng).fbar / renders)
            self.allocation.probe(trainer.step_count, self._pair, other)

    def figures(self, trainer: Trainer) -> dict[str, Tensor]:
        """K."""
        return {"resamples": torch.tensor(float(trainer.carv.resamples), device=trainer.device)}

    def state_dict(self) -> dict[str, Tensor]:
        """See `carv3d.runs.state.Stateful`."""
        return self.allocation.state_dict()

    def load_state_dict(self, state: dict[str, Tensor], /) -> None:
        """See `carv3d.runs.state.Stateful`; a run that had another K so far has no such state."""
        if state:
            self.allocation.load_state_dict(state)


def cost_ratio(trainer: Trainer) -> float:
    """c_up / c_denoise of this machine and config. It uses draws of its own, so that the run does not depend on it."""
    guidance = trainer.config.guidance
    rng = torch.Generator(trainer.device).manual_seed(0)
    how: dict[str, Any] = {key: getattr(guidance, key) for key in ("proposal", "strata", "coupling")}
    steps = {
        (guidance.renders, K): partial(trainer.trial, guidance.renders, trainer.carv.replace(resamples=K, **how), rng)
        for K in (1, 8)
    }
    meter = CostMeter(trainer.clock)
    with trainer.carv.kept():
        for step in steps.values():  # the first passes are slower
            step()
        for _ in range(COST_ROUNDS):
            meter.round(steps)
    trainer.clock.seconds = {}
    trainer.optimizer.zero_grad()
    return meter.model().ratio


class Allocation:
    """The running means, and the K that follows from them.

    Attributes:
        resamples: K of the step to come.
        cost_ratio: c_up / c_denoise, measured once a run; None before.
        between: A of a step's gradient, running mean.
        within: K V(K), by each level that K has had; running means.
        size: A + V(K) at the present K, running geometric mean; 0 before the first probe.
        probes: their number so far, by level.
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
        """Add a measurement, and move K if enough probes are done. Waits for the device: two numbers are fetched.

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
        for k in set(self.within) - {1, level}:  # a single draw has no pair, so that level 1 keeps its own value
            self.within[k] += FORGET * (now - self.within[k])
        self._next = step + min(max(FIRST, step // SHARE), MOST)
        if done + 1 >= FEWEST:
            self._move()

    def _grow(self, total: float) -> float:
        """The factor by which the variance of a step has grown since the last probe, as estimated."""
        before = self.size
        self.size = before**SIZE_MEMORY * total ** (1 - SIZE_MEMORY) if before > 0 else total
        return self.size / before if before > 0 else 1.0

    def waste(self, resamples: int) -> float:
        """Variance times cost at a level, up to a constant: the inverse of ECM."""
        if self.cost_ratio is None:
            raise ValueError("the cost ratio is not known yet")
        place = LEVELS.index(resamples)
        within = self.within[min(self.within, key=lambda level: (abs(LEVELS.index(level) - place), level))]
        return (max(self.between, 1e-3 * within) + within / resamples) * (self.cost_ratio + resamples)

    def _move(self) -> None:
        here = LEVELS.index(self.resamples)
        best = min(LEVELS[max(here - 1, 0) : here + 2], key=self.waste)
        if self.waste(best) < (1 - GAIN) * self.waste(self.resamples):
            if best not in self.within:  # the expected value counts as a first measurement
                self.within[best], self.probes[best] = self.within[self.resamples], 1
            self.resamples, self.size = best, 0.0

    def state_dict(self) -> dict[str, Tensor]:
        """All that the next step depends on."""
        if self.cost_ratio is None:
            return {}
        numbers = [self.resamples, self.cost_ratio, self.between, self.size, self._next]
        levels = [[level, self.within[level], self.probes[level]] for level in self.within]
        return {
            "numbers": torch.tensor(numbers, dtype=torch.float64),
            "levels": torch.tensor(levels, dtype=torch.float64),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state_dict` gave."""
        resamples, self.cost_ratio, self.between, self.size, following = state["numbers"].tolist()
        self.resamples, self._next = int(resamples), int(following)
        levels = state["levels"].tolist()
        self.within = {int(level): within for level, within, _ in levels}
        self.probes = {int(level): int(probes) for level, _, probes in levels}


def _running(mean: float, value: float, count: int) -> float:
    """An exponential running mean; of the first values, their plain mean."""
    return mean + max(1 - MEMORY, 1 / (count + 1)) * (value - mean)
