"""What coupling the noises of a render does to its variance, at several stages of training and guidance scales.

    python scripts/benchmark_couplings.py outputs/reproduce/a-red-mushroom --steps 75 300 670 --budget 60

For each stage and scale: the within-render variance of every coupling over that of the paper's method (importance
proposal, strata, independent noise) at the same K, with 95 % intervals over renders; the largest |z| of a method's
mean; and the correlation of the residuals of eps and -eps by timestep.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from carv3d import registry
from carv3d.accounting import Measurement, Method, measure
from carv3d.generation.generation import load_trainer
from carv3d.guidance import guidance_of
from carv3d.objectives import Draw
from carv3d.runs import Run
from carv3d.sampling import Normals
from carv3d.system.threads import set_threads
from carv3d.training.trainer import Trainer

TIMES = (0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95)  # of the timestep range


def orthogonal(normals: Normals, resamples: int) -> Tensor:
    """Antithetic pairs whose directions are at right angles, with norms of their own."""
    g = normals((resamples + 1) // 2)
    flat = g.flatten(2)
    q = torch.linalg.qr(flat.mT)[0].mT
    q = q * (q * flat).sum(2, keepdim=True).sign()
    eps = (q * normals(flat.shape[1]).flatten(2).norm(dim=2, keepdim=True)).view_as(g)
    return torch.stack([eps, -eps], 2).flatten(1, 2)[:, :resamples]


def bands(normals: Normals, resamples: int) -> Tensor:
    """Antithetic within two bands of frequencies: (a + b), -(a + b), (a - b), -(a - b) for every four."""
    g = normals((resamples + 3) // 4)
    across, down = (torch.fft.fftfreq(side, device=g.device) for side in (g.shape[-1], g.shape[-2]))
    radius = (down[:, None] ** 2 + across**2).sqrt()
    low = torch.fft.ifft2(torch.fft.fft2(g) * (radius <= radius.median())).real
    high = g - low
    four = [low + high, -low - high, low - high, high - low]
    return torch.stack(four, 2).flatten(1, 2)[:, :resamples]


# Tried, beside those that carv3d has.
TRIED = {"orthogonal": orthogonal, "bands": bands}


def ratio(found: Measurement, method: Method, paper: Method) -> tuple[float, float, float]:
    """Within-render variance of a method over the paper's, and a bootstrap interval over renders."""
    own, other = found.within_samples(method), found.within_samples(paper)
    drawn = np.random.default_rng(0).integers(len(own), size=(1000, len(own)))
    low, high = np.quantile(own[drawn].mean(1) / other[drawn].mean(1), [0.025, 0.975])
    return float(own.mean() / other.mean()), float(low), float(high)


@torch.no_grad()
def correlations(trainer: Trainer, rng: torch.Generator, renders: int = 6) -> dict[int, float]:
    """By timestep: the correlation of r(eps) and r(-eps) about their mean over eps, over renders and noises."""
    carv, found = trainer.carv, {}
    support = carv.p.nonzero()[:, 0]
    low, high = int(support[0]), int(support[-1])
    views = [trainer.look(trainer.sampler.sample(1, rng), rng)[1:] for _ in range(renders)]
    for share in TIMES:
        t = round(low + share * (high - low))
        both, power = 0.0, 0.0
        for z, condition in views:
            eps = torch.randn((8, *z.shape[1:]), generator=rng, device=z.device)
            rows = torch.zeros(16, dtype=torch.long, device=z.device)
            times = torch.full((16,), t, device=z.device)
            draw = Draw(carv.model, carv.guidance, z.detach()[rows], times, torch.cat([eps, -eps]), condition[rows])
            r = carv.objective.residual(draw)
            r = (r - r.mean(0)).flatten(1)
            plus, minus = r.chunk(2)
            both += float((plus * minus).sum())
            power += float(r.square().sum()) / 2
        found[t] = both / power
    return found


def at(run: Run, step: int, scale: float, noises: list[Any], resamples: list[int], budget: float) -> dict[str, Any]:
    """All figures of one stage and scale."""
    trainer = load_trainer(run, step)
    trainer.set_schedules()
    trainer.carv.guidance = guidance_of(scale)
    rng = torch.Generator(trainer.device).manual_seed(0)

    def upstream(rng: torch.Generator) -> tuple[Tensor, Any]:
        _, z, condition = trainer.look(trainer.sampler.sample(1, rng), rng)
        return z, condition

    methods = [Method("importance", "render", K, n) for K in resamples for n in ("independent", *noises)]
    methods.append(Method("uniform", "none", 1))
    found = measure(trainer.carv, upstream, trainer.parameters(), methods, rng, budget=budget)
    rows = [
        {"noise": noise, "K": K, **dict(zip(("ratio", "low", "high"), ratio(found, method, paper), strict=True))}
        for K in resamples
        for noise in noises
        for method, paper in [(Method("importance", "render", K, noise), Method("importance", "render", K))]
    ]
    return {
        "step": step,
        "scale": scale,
        "rows": rows,
        "z": max(found.z().values()),
        "between": float(found.between_samples().mean()),
        "within_of_one": float(found.within_samples(methods[-1]).mean()),
        "correlation": correlations(trainer, rng),
        "renders": len(found.seconds),
    }


def main() -> None:
    """Measure and print markdown; --json has everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run whose checkpoints at the steps were kept")
    parser.add_argument("--steps", type=int, nargs="+", required=True)
    parser.add_argument("--scales", type=float, nargs="+", default=[4.0, 25.0, 100.0])
    parser.add_argument("--resamples", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--budget", type=float, default=60.0, help="seconds a stage and scale")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--noises", nargs="+", default=["zero_sum", "antithetic"], help="also: orthogonal, bands")
    options = parser.parse_args()
    for name, coupling in TRIED.items():
        registry.register("coupling", name, coupling)
    found = []
    print("| step | scale | noise | " + " | ".join(f"K = {K}" for K in options.resamples) + " | max z | renders |")
    print("|---|---|---|" + "---|" * (len(options.resamples) + 2))
    with Run.open(options.run) as run:
        set_threads(run.config)
        for step in options.steps:
            for scale in options.scales:
                one = at(run, step, scale, options.noises, options.resamples, options.budget)
                found.append(one)
                for noise in options.noises:
                    rows = [row for row in one["rows"] if row["noise"] == noise]
                    cells = [f"{row['ratio']:.2f} ({row['low']:.2f}-{row['high']:.2f})" for row in rows]
                    ends = f"{one['z']:.1f} | {one['renders']}"
                    print(f"| {step} | {scale:g} | {noise} | " + " | ".join(cells) + f" | {ends} |", flush=True)
    print("\nCorrelation of r(eps) and r(-eps) by t:\n")
    for one in found:
        cells = ", ".join(f"{t}: {value:.2f}" for t, value in one["correlation"].items())
        print(f"- step {one['step']}, scale {one['scale']:g}: {cells}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
