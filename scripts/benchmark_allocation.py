"""`guidance.resamples=auto` against every fixed K, at several stages of runs in several regimes.

    python scripts/benchmark_allocation.py --renders 60

The runs are those of `benchmark_regimes.py` (made in OUT, kept if they are there). At a stage's checkpoint the
variance of a step of one render is measured for each K at the same renders, and c_up / c_denoise; ECM is the inverse
of variance times cost. Each K's ECM is given as a share of the best one's, with a bootstrap over renders for that of
the K that the run had.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from benchmark_regimes import arguments, train
from numpy.typing import NDArray

from carv3d.accounting import CostModel, Gradient, VarianceMeter
from carv3d.generation.generation import load_trainer
from carv3d.loss import Carv
from carv3d.runs import Run, read_metrics
from carv3d.system.threads import set_threads
from carv3d.training.trainer import Trainer

LEVELS = (1, 2, 4, 8, 16)
STAGES = (0.1, 0.5, 1.0)  # of the run
ROUNDS = 15  # of timing
SAMPLES = 4000  # of the bootstrap


def cost_ratio(trainer: Trainer, rng: torch.Generator) -> float:
    """c_up / c_denoise of the scene as it is; on the CPU in its own time, which other work hardly changes."""

    def seconds(K: int) -> float:
        started = _now(trainer.device)
        trainer.optimizer.zero_grad()
        trainer.trial(1, _carv(trainer, K), rng)
        return _now(trainer.device) - started

    seconds(1)  # the first is slower than all others
    rounds = [(seconds(1), seconds(8)) for _ in range(ROUNDS)]
    one, eight = (float(np.median(column)) for column in zip(*rounds, strict=True))
    return CostModel.fit([(1, 1, one), (1, 8, eight)]).ratio


def _now(device: torch.device) -> float:
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def variances(
    trainer: Trainer, levels: Sequence[int], renders: int, rng: torch.Generator
) -> dict[int, NDArray[np.float64]]:
    """By K, a sample of the variance of one step a render (the first left out); the part between views is pooled."""
    meters = {K: VarianceMeter() for K in levels}
    for _ in range(renders):
        _, z, condition = trainer.look(trainer.sampler.sample(1, rng), rng)
        gradient = Gradient(z, trainer.parameters())
        for K, meter in meters.items():
            carv = _carv(trainer, K)
            meter.add(torch.stack([gradient(carv.estimate(z, condition, rng).fbar) for _ in range(2)]))
    between = np.mean([meter.samples()[0] for meter in meters.values()], 0)
    return {K: between + meter.samples()[1] for K, meter in meters.items()}


def _carv(trainer: Trainer, K: int) -> Carv:
    guidance = trainer.config.guidance
    return trainer.carv.replace(
        resamples=K, proposal=guidance.proposal, strata=guidance.strata, noise=guidance.coupling
    )


def main() -> None:
    """Train, measure, print markdown."""
    parser = arguments(__doc__)
    parser.add_argument("--renders", type=int, default=60, help="a stage")
    options = parser.parse_args()
    head = ["regime", "step", "c_up / c_denoise", *(f"K = {K}" for K in LEVELS), "auto's K", "its share"]
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head), flush=True)
    for name in options.regimes:
        with Run.open(train(name, options.prompt, options.steps, options.out)) as run:
            set_threads(run.config)
            rows = read_metrics(run.path / "metrics.jsonl")
            for stage in STAGES:
                step = round(stage * options.steps)
                trainer = load_trainer(run, step)
                rng = torch.Generator(trainer.device).manual_seed(0)
                trainer.set_schedules()
                trainer.renderer.update_occupancy(trainer.scene, trainer.step_count, rng)
                ratio = cost_ratio(trainer, rng)
                K = next(int(row["resamples"]) for row in reversed(rows) if row["step"] <= step)
                found = variances(trainer, sorted({*LEVELS, K}), options.renders, rng)
                waste = {k: (ratio + k) * samples for k, samples in found.items()}
                best = min(waste, key=lambda k: waste[k].mean())
                picks = np.random.default_rng(0).integers(len(waste[best]), size=(SAMPLES, len(waste[best])))
                low, high = np.quantile(waste[best][picks].mean(1) / waste[K][picks].mean(1), [0.025, 0.975])
                shares = {k: waste[best].mean() / waste[k].mean() for k in LEVELS}
                cells = [name, str(step), f"{ratio:.1f}", *(f"{shares[k]:.2f}" for k in LEVELS)]
                print("| " + " | ".join([*cells, str(K), f"{shares[K]:.2f} ({low:.2f}-{high:.2f})"]) + " |", flush=True)


if __name__ == "__main__":
    main()
