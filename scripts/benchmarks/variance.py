"""Where the variance of a step is: the paper's tables of ECM and RE in the built-in world, and orders of cameras.

At three stages of a run the variances are measured; costs are given as measured, and for the paper's ratio of
upstream to teacher cost. `cameras`: the variance between views of a step of R renders over that of R independent
cameras, from a table of the mean gradient over cameras; what the table does not resolve is not in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from carv3d.accounting.windows import on_table, resolved_variance
from carv3d.cameras import sequence_points
from carv3d.generation.generation import load_trainer
from carv3d.measurement import NoiseReport, report
from carv3d.measurement.observation import TABLE, camera_table
from carv3d.runs import Run
from scripts.benchmarks.harness import Bench, Table

RATIO = 4.0  # c_up / c_denoise that fits the paper's table
METHODS = ("uniform", "importance", "stratified", "importance + stratified")
# arXiv 2605.21489, text-to-3D: by K, ECM of the four methods, then RE of the last three.
PAPER = {
    1: ((1.00, 1.24, 1.00, 1.24), (1.24, 1.00, 1.24)),
    2: ((1.57, 1.93, 1.66, 2.05), (1.23, 1.06, 1.30)),
    4: ((2.24, 2.68, 2.47, 2.94), (1.20, 1.11, 1.31)),
    8: ((2.63, 3.01, 2.96, 3.29), (1.14, 1.12, 1.25)),
    16: ((2.52, 2.75, 2.75, 2.94), (1.09, 1.09, 1.17)),
}
ORDERS = ("stratified", "lattice", "sequence")
_DRAWS = 4000  # of the cameras of a step


def measure(bench: Bench) -> Iterator[tuple[str, Table]]:
    """The tables of three stages, and of the cameras."""
    steps = 10 if bench.quick else 670
    stages = {"early": steps // 10, "middle": steps // 2, "end": steps}
    with Run.open(bench.train("default", "a red mushroom", steps, bench.words)) as run:
        for name, step in stages.items():
            if bench.wants(name):
                observed = bench.observe(run, step)
                yield name, paper_table(report(observed), report(observed, RATIO))
        if bench.wants("cameras"):
            yield "cameras", camera_orders(run, [stages["early"], stages["end"]], bench)


def paper_table(found: NoiseReport, simulated: NoiseReport) -> Table:
    """Cells are the four methods, uniform first."""

    def cell(one: NoiseReport, K: int, figure: str, names: Sequence[str]) -> str:
        rows = {row.method: row for row in one.rows if (row.R, row.K) == (1, K)}
        plain = {"stratified": "uniform", "importance + stratified": "importance"}  # one draw has no strata
        return " / ".join(f"{getattr(rows.get(name) or rows[plain[name]], figure):.2f}" for name in names)

    columns = ["K", "ECM as measured", f"ECM at ratio {RATIO:.0f}", "ECM in the paper", "RE", "RE in the paper"]
    table = Table(columns)
    for K, (ecm, re) in PAPER.items():
        if not any((row.R, row.K) == (1, K) for row in found.rows):
            continue
        ours = [cell(one, K, "ecm", METHODS) for one in (found, simulated)]
        theirs = [" / ".join(f"{x:.2f}" for x in column) for column in (ecm, re)]
        table.rows.append([K, *ours, theirs[0], cell(found, K, "re", METHODS[1:]), theirs[1]])
    return table


def points(order: str, renders: int, rng: torch.Generator) -> Tensor:
    """(DRAWS, R, 2) cameras of a step in [0, 1): azimuth, elevation. Each camera has the same distribution."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=rng, dtype=torch.float64)

    place = torch.arange(renders, dtype=torch.float64)
    match order:
        case "stratified":  # one azimuth in each of R strata
            azimuth = (place + uniform(_DRAWS, renders)) / renders
            return torch.stack([azimuth, uniform(_DRAWS, renders)], -1)
        case "lattice":  # R evenly spaced azimuths and, in another order, heights; both rotated at random
            shuffled = uniform(_DRAWS, renders).argsort(1).double()
            return (torch.stack([place.expand(_DRAWS, -1), shuffled], -1) / renders + uniform(_DRAWS, 1, 2)) % 1
        case "sequence":  # R successive points of the R2 sequence, as cameras.order=sequence takes them
            return sequence_points(0, renders, uniform(_DRAWS, 2))
    return uniform(_DRAWS, renders, 2)


def camera_orders(run: Run, steps: Sequence[int], bench: Bench) -> Table:
    """Variance between views over that of independent cameras, by order."""
    table = Table(["step", "R", *ORDERS])
    for step in steps:
        trainer = load_trainer(run, step)
        trainer.set_schedules()
        gram = camera_table(trainer, bench.rng(), 3600.0, lambda *_: None)
        if gram is None:
            continue
        for renders in (2, 4) if bench.quick else (2, 3, 4, 8):
            rng = torch.Generator().manual_seed(bench.seed)
            weights = torch.full((renders,), 1 / renders, dtype=torch.float64)
            found = [
                resolved_variance(
                    gram, on_table(points(order, renders, rng), weights, *TABLE, trainer.sampler.full_turn)
                )
                for order in ("independent", *ORDERS)
            ]
            table.rows.append([step, renders, *(f"{value / found[0]:.2f}" for value in found[1:])])
    return table
