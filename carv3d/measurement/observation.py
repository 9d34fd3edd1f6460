"""The measurement: the cost of steps, the mean gradient by camera, the variance by method."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from carv3d.accounting import SKETCH, CostMeter, CountSketch, Gradient, Measurement, gram_of, measure, methods
from carv3d.errors import UserError
from carv3d.training.trainer import Trainer

RENDERS, RESAMPLES = (1, 2, 4, 8), (1, 2, 4, 8, 16)
MOST_DRAWS = 32  # R K of the grid's largest steps, as in the paper
COST_SHARE = 0.15  # of the budget
COST_ROUNDS = 3
TABLE = (12, 6)  # azimuths, elevations
TABLE_SHARE = 0.25  # largest share of the budget; above it there is no table
TABLE_RESAMPLES = 4

# The present activity, and the share of the budget that is used.
Watch = Callable[[str, float], None]


@dataclass(frozen=True)
class Observation:
    """The results of a measurement, from which reports for any cost ratio can be made.

    Attributes:
        found: variances.
        meter: costs.
        grid: the (R, K).
        gram: products of the mean gradients at a table of cameras, see `carv3d.accounting.windows`; or None.
        full_turn: whether the cameras' azimuths close on themselves.
        p, w: (T,) target pmf and weight.
        seconds: it took.
    """

    found: Measurement
    meter: CostMeter
    grid: Sequence[tuple[int, int]]
    gram: Tensor | None
    full_turn: bool
    p: Tensor
    w: Tensor
    seconds: float


def observe(
    trainer: Trainer,
    *,
    renders: Sequence[int] = RENDERS,
    resamples: Sequence[int] = RESAMPLES,
    budget: float = 300.0,
    precision: float = 0.05,
    seed: int = 0,
    watch: Watch = lambda _what, _share: None,
) -> Observation:
    """Measure costs and variances of a trainer as it stands. Its parameters are not changed.

    The gradient is that of the distillation loss for everything that is trained; regularisers are left out, since no
    method changes their noise.

    Args:
        trainer: of a fresh scene, or one whose checkpoint was loaded.
        renders: R of the grid. Renders are independent: the variance of R of them is 1 / R of one's.
        resamples: K of the grid; 1 is added.
        budget: seconds for everything.
        precision: stop before that when every total variance is known within this share.
        seed: of all draws.
        watch: called now and then.

    Raises:
        UserError: the grid is empty, or see `carv3d.accounting.measure`.
    """
    if min([*renders, *resamples], default=0) < 1:
        raise UserError("renders and resamples must be whole numbers of at least 1")
    started = time.perf_counter()
    rng = torch.Generator(trainer.device).manual_seed(seed)
    trainer.set_schedules()
    trainer.renderer.update_occupancy(trainer.scene, trainer.step_count, rng)
    ks = sorted({1, *resamples})
    rs = sorted({1, *renders})
    grid = [(R, K) for R in rs for K in ks if max(MOST_DRAWS, *ks, *rs) >= R * K]
    timed = grid if len(ks) > 1 else [*grid, (1, 2)]  # one K does not show the cost of a draw
    meter = _measure_costs(trainer, timed, rng, budget * COST_SHARE, watch)

    def upstream(rng: torch.Generator) -> tuple[Tensor, Any]:
        _, z, condition = trainer.look(trainer.sampler.sample(1, rng), rng)
        return z, condition

    def tell(found: Measurement) -> None:
        watch(f"{len(found.seconds)} renders, ±{found.worst_precision:.0%}", (time.perf_counter() - started) / budget)

    gram = camera_table(trainer, rng, budget * TABLE_SHARE, watch)
    already = time.perf_counter() - started
    found = measure(
        trainer.carv,
        upstream,
        trainer.parameters(),
        methods(ks),
        rng,
        budget=budget - already,
        already=already,
        precision=precision,
        watch=tell,
    )
    seconds = time.perf_counter() - started
    return Observation(found, meter, grid, gram, trainer.sampler.full_turn, trainer.carv.p, trainer.carv.w, seconds)


def _measure_costs(
    trainer: Trainer, grid: Sequence[tuple[int, int]], rng: torch.Generator, budget: float, watch: Watch
) -> CostMeter:
    meter, started = CostMeter(trainer.clock), time.perf_counter()

    def step(R: int, K: int) -> Callable[[], None]:
        carv = trainer.carv.replace(resamples=K, proposal="importance", strata="render", coupling="antithetic")

        def run() -> None:
            trainer.optimizer.zero_grad()
            trainer.trial(R, carv, rng)

        return run

    steps = {(R, K): step(R, K) for R, K in grid}
    with trainer.carv.kept():
        for R, K in (grid[0], grid[-1]):  # the first passes are slower
            steps[R, K]()
        while not meter.rounds or len(meter.rounds[grid[0]]) < COST_ROUNDS or time.perf_counter() - started < budget:
            watch("timing steps", (time.perf_counter() - started) / max(budget, 1e-9) * COST_SHARE)
            meter.round(steps)
    trainer.optimizer.zero_grad()
    return meter


def camera_table(trainer: Trainer, rng: torch.Generator, budget: float, watch: Watch) -> Tensor | None:
    """Products of the mean gradients at a table of cameras; None if it would take too long or there is no table."""
    cameras = trainer.sampler.table(*TABLE, rng)
    if cameras is None:
        return None
    carv = trainer.carv.replace(
        resamples=TABLE_RESAMPLES, proposal="importance", strata="render", coupling="antithetic"
    )
    parameters = trainer.parameters()
    sketch = CountSketch(sum(p.numel() for p in parameters), SKETCH, torch.Generator(trainer.device).manual_seed(0))
    started, replicates = time.perf_counter(), []
    for node in range(len(cameras)):
        pair = []
        for _ in range(2):
            _, z, condition = trainer.look(cameras[node : node + 1], rng)
            pair.append(sketch(Gradient(z, parameters)(carv.estimate(z, condition, rng).fbar)))
        replicates.append(torch.stack(pair))
        spent = time.perf_counter() - started
        if spent / (node + 1) * len(cameras) > budget:
            return None
        watch("cameras", COST_SHARE + TABLE_SHARE * (node + 1) / len(cameras))
    first, second = torch.stack(replicates, 1).cpu()
    return gram_of(first, second)
