"""What a proposal learned on the way would gain over the paper's, q proportional to p w, at several stages of a run.

    python scripts/benchmark_proposals.py outputs/shapes/a-red-mushroom-1 --steps 67 335 670 --budget 60

A run could learn from its past steps how much f(t) = w(t) r varies at each t, and draw there in proportion: from the
norm of one draw's residual, or of the mean of an antithetic pair's, which is what coupled noise leaves. Both are taken
here from the residuals of many views, with a floor of a tenth of p. For each: the variance within a render, in
parameters, over the paper's proposal's, on the same renders, with 95 % intervals.
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path

import numpy as np
import torch

from carv3d.accounting import Gradient
from carv3d.accounting.variance import within
from carv3d.generation.generation import load_trainer
from carv3d.guidance import guidance_of
from carv3d.objectives import Draw
from carv3d.runs import Run
from carv3d.sampling import Proposal
from carv3d.system.threads import set_threads
from carv3d.training.trainer import Trainer

BINS = 16
FLOOR = 0.1
LEARNED_FROM = 6  # pairs a bin, each of a view of its own


@torch.no_grad()
def learned(trainer: Trainer, rng: torch.Generator) -> dict[str, Proposal]:
    """Proposals in proportion to the root mean square of w(t) r, of one draw and of an antithetic pair's mean."""
    carv = trainer.carv
    support = carv.p.nonzero()[:, 0]
    edges = torch.linspace(int(support[0]), int(support[-1]) + 1, BINS + 1, dtype=torch.float64)
    squares = torch.zeros(2, BINS, dtype=torch.float64)
    for _ in range(LEARNED_FROM):
        _, z, condition = trainer.look(trainer.sampler.sample(1, rng), rng)
        u = torch.rand(BINS, generator=rng, device=z.device, dtype=torch.float64).cpu()
        t = (edges[:-1] + u * edges.diff()).long().to(z.device)
        rows = torch.zeros(BINS, dtype=torch.long, device=z.device)
        eps = torch.randn((BINS, *z.shape[1:]), generator=rng, device=z.device)
        told = carv.model, carv.guidance, z[rows], t
        pair = [carv.objective.residual(Draw(*told, e, condition[rows])) for e in (eps, -eps)]
        for kind, r in enumerate((pair[0], (pair[0] + pair[1]) / 2)):
            squares[kind] += r.flatten(1).square().sum(1).double().cpu()
    of_bin = (torch.bucketize(support.double(), edges, right=True) - 1).clamp(0, BINS - 1)
    found = {}
    for name, mean in zip(("one draw", "a pair"), (squares / LEARNED_FROM).sqrt(), strict=True):
        q = torch.zeros_like(carv.p)
        q[support] = mean[of_bin] * carv.w[support]
        q = q / q.sum()
        found[name] = Proposal.of(carv.p, (1 - FLOOR) * q + FLOOR * carv.p)
    return found


def variances(
    trainer: Trainer, proposals: dict[str, Proposal], resamples: list[int], budget: float, rng: torch.Generator
) -> dict[tuple[str, int], list[float]]:
    """By proposal and K: a sample of the variance within a render, for every render."""
    found: dict[tuple[str, int], list[float]] = {(name, K): [] for name in proposals for K in resamples}
    started = time.perf_counter()
    while time.perf_counter() - started < budget:
        _, z, condition = trainer.look(trainer.sampler.sample(1, rng), rng)
        gradient = Gradient(z, trainer.parameters())
        rows = torch.zeros(2, dtype=torch.long, device=z.device)
        for (name, K), samples in found.items():
            carv = copy.copy(trainer.carv)
            carv.resamples, carv.proposal = K, proposals[name].to(z.device)
            fbar = carv.estimate(z[rows], condition[rows], rng).fbar
            samples.append(float(within(torch.stack([gradient(one[None]) for one in fbar]))))
    return found


def main() -> None:
    """Measure and print markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run whose checkpoints at the steps were kept")
    parser.add_argument("--steps", type=int, nargs="+", required=True)
    parser.add_argument("--resamples", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--scale", type=float, help="guidance; default: the run's")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds a stage")
    options = parser.parse_args()
    print("| step | learned from | " + " | ".join(f"K = {K}" for K in options.resamples) + " | renders |")
    print("|---|---|" + "---|" * (len(options.resamples) + 1))
    with Run.open(options.run) as run:
        set_threads(run.config)
        for step in options.steps:
            trainer = load_trainer(run, step)
            trainer.set_schedules()
            if options.scale is not None:
                trainer.carv.guidance = guidance_of(options.scale)
            rng = torch.Generator(trainer.device).manual_seed(0)
            proposals = learned(trainer, rng)
            found = variances(
                trainer, {"w": trainer.carv.proposal, **proposals}, options.resamples, options.budget, rng
            )
            for name in proposals:
                cells = []
                for K in options.resamples:
                    own, paper = np.array(found[name, K]), np.array(found["w", K])
                    drawn = np.random.default_rng(0).integers(len(own), size=(1000, len(own)))
                    low, high = np.quantile(own[drawn].mean(1) / paper[drawn].mean(1), [0.025, 0.975])
                    cells.append(f"{own.mean() / paper.mean():.2f} ({low:.2f}-{high:.2f})")
                print(f"| {step} | {name} | " + " | ".join(cells) + f" | {len(own)} |", flush=True)


if __name__ == "__main__":
    main()
