"""What spreading the R cameras of a step does to the variance between views, at a run's checkpoints.

    python scripts/benchmark_cameras.py outputs/shapes/a-red-mushroom-1 --steps 300 600

The mean gradient is measured at a table of cameras; from it comes the variance of the mean over R cameras under
every order, over that of R independent ones. What the table does not resolve is not in it. Every order keeps each
camera's distribution: "stratified" has one azimuth in each of R strata; "lattice" R evenly spaced azimuths and heights,
both rotated at random; "sequence" R successive points of the R2 sequence, as `cameras.order=sequence` takes them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from carv3d.accounting.windows import on_table, resolved_variance
from carv3d.cameras import sequence_points
from carv3d.generation.generation import load_trainer
from carv3d.measurement.observation import TABLE, camera_table
from carv3d.runs import Run
from carv3d.system.threads import set_threads

DRAWS = 4000
ORDERS = ("stratified", "lattice", "sequence")


def points(order: str, renders: int, rng: torch.Generator) -> Tensor:
    """(DRAWS, R, 2) cameras in [0, 1): azimuth, elevation."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=rng, dtype=torch.float64)

    place = torch.arange(renders, dtype=torch.float64)
    if order == "stratified":
        azimuth = (place + uniform(DRAWS, renders)) / renders
        return torch.stack([azimuth, uniform(DRAWS, renders)], -1)
    if order == "lattice":  # heights in another order than azimuths
        shuffled = uniform(DRAWS, renders).argsort(1).double()
        return (torch.stack([place.expand(DRAWS, -1), shuffled], -1) / renders + uniform(DRAWS, 1, 2)) % 1
    if order == "sequence":
        return sequence_points(0, renders, uniform(DRAWS, 2))
    return uniform(DRAWS, renders, 2)


def main() -> None:
    """Measure and print markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, nargs="+", required=True)
    parser.add_argument("--renders", type=int, nargs="+", default=[2, 3, 4, 8])
    options = parser.parse_args()
    print("| step | R | " + " | ".join(ORDERS) + " |\n|---|---|" + "---|" * len(ORDERS))
    with Run.open(options.run) as run:
        set_threads(run.config)
        for step in options.steps:
            trainer = load_trainer(run, step)
            trainer.set_schedules()
            gram = camera_table(trainer, torch.Generator(trainer.device).manual_seed(0), 3600.0, lambda *_: None)
            assert gram is not None
            for renders in options.renders:
                rng, weights = (
                    torch.Generator().manual_seed(0),
                    torch.full((renders,), 1 / renders, dtype=torch.float64),
                )
                found = [
                    resolved_variance(
                        gram, on_table(points(order, renders, rng), weights, *TABLE, trainer.sampler.full_turn)
                    )
                    for order in ("independent", *ORDERS)
                ]
                cells = " | ".join(f"{value / found[0]:.2f}" for value in found[1:])
                print(f"| {step} | {renders} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
