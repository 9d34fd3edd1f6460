"""What changes to the estimator gain: couplings of the noises, a learned proposal, and K chosen during the run.

All at checkpoints of runs. `couplings`, `proposals`: the variance within a render over that of the paper's method
(importance proposal, strata, independent noise; for proposals: with antithetic noise), with 95 % bootstrap
intervals over renders. `correlation`: of the residuals of eps and -eps, by timestep. `resamples`: ECM of every K as
a share of the best one's, and where the K of `guidance.resamples=auto` stands.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from carv3d import registry
from carv3d.accounting import Gradient, Method, VarianceMeter
from carv3d.accounting import measure as measure_methods
from carv3d.accounting.variance import within
from carv3d.generation.generation import load_trainer
from carv3d.guidance import guidance_of
from carv3d.loss import Carv
from carv3d.objectives import Draw
from carv3d.runs import Run, read_metrics
from carv3d.sampling import Normals, Proposal
from carv3d.training.automatic_resamples import cost_ratio
from carv3d.training.trainer import Trainer
from scripts.benchmarks.harness import Bench, Table, ratio
from scripts.benchmarks.regimes import chosen, trained

TIMES = (0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95)  # of the timestep range
LEVELS = (1, 2, 4, 8, 16)
BINS, FLOOR, LEARNED_FROM = 16, 0.1, 6  # of a learned proposal: bins of t, share of p, pairs a bin


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


registry.register("coupling", "orthogonal", orthogonal)
registry.register("coupling", "bands", bands)


def measure(bench: Bench) -> Iterator[tuple[str, Table]]:
    """See the module."""
    steps = 10 if bench.quick else 670
    with Run.open(bench.train("default", "a red mushroom", steps, bench.words)) as run:
        stages = (steps // 10, steps // 2, steps)
        if bench.wants("couplings"):
            yield "couplings", couplings(run, stages, bench)
        if bench.wants("correlation"):
            yield "correlation", correlation(run, stages, bench)
        if bench.wants("proposals"):
            yield "proposals", proposals(run, stages, bench)
    if bench.wants("resamples"):
        yield "resamples", automatic(bench)


def couplings(run: Run, stages: Sequence[int], bench: Bench) -> Table:
    """By stage, guidance scale and coupling."""
    resamples = (2,) if bench.quick else (2, 4, 8, 16)
    tried = ("antithetic",) if bench.quick else ("zero_sum", "antithetic", "orthogonal", "bands")
    table = Table(["step", "scale", "coupling", *(f"K = {K}" for K in resamples), "max z", "renders"])
    for step in stages[:1] if bench.quick else stages:
        for scale in (4.0,) if bench.quick else (4.0, 25.0, 100.0):
            trainer, rng = at(run, step, bench), bench.rng()
            trainer.carv.guidance = guidance_of(scale)

            def upstream(rng: torch.Generator, trainer: Trainer = trainer) -> tuple[Tensor, object]:
                return trainer.look(trainer.sampler.sample(1, rng), rng)[1:]

            methods = [Method("importance", "render", K, n) for K in resamples for n in ("independent", *tried)]
            methods.append(Method("uniform", "none", 1))
            found = measure_methods(trainer.carv, upstream, trainer.parameters(), methods, rng, budget=bench.budget)
            z, renders = max(found.z().values()), len(found.seconds)
            for name in tried:
                cells = [
                    ratio(
                        found.within_samples(Method("importance", "render", K, name)),
                        found.within_samples(Method("importance", "render", K)),
                    )
                    for K in resamples
                ]
                table.rows.append([step, scale, name, *cells, f"{z:.1f}", renders])
    return table


@torch.no_grad()
def correlation(run: Run, stages: Sequence[int], bench: Bench) -> Table:
    """Of r(eps) and r(-eps) about their mean over eps, over renders and noises, by share of the timestep range."""
    table = Table(["step", *(f"{share:.0%}" for share in TIMES)])
    for step in stages:
        trainer, rng, cells = at(run, step, bench), bench.rng(), []
        carv = trainer.carv
        support = carv.p.nonzero()[:, 0]
        low, high = int(support[0]), int(support[-1])
        views = [trainer.look(trainer.sampler.sample(1, rng), rng)[1:] for _ in range(2 if bench.quick else 6)]
        for share in TIMES:
            both, power = 0.0, 0.0
            for z, condition in views:
                eps = torch.randn((8, *z.shape[1:]), generator=rng, device=z.device)
                rows = torch.zeros(16, dtype=torch.long, device=z.device)
                times = torch.full((16,), round(low + share * (high - low)), device=z.device)
                draw = Draw(carv.model, carv.guidance, z.detach()[rows], times, torch.cat([eps, -eps]), condition[rows])
                r = carv.objective.residual(draw)
                plus, minus = (r - r.mean(0)).flatten(1).chunk(2)
                both += float((plus * minus).sum())
                power += float(plus.square().sum() + minus.square().sum()) / 2
            cells.append(f"{both / power:.2f}")
        table.rows.append([step, *cells])
    return table


def proposals(run: Run, stages: Sequence[int], bench: Bench) -> Table:
    """A proposal proportional to the size of w(t) r at each t, over the paper's proposal."""
    resamples = (2,) if bench.quick else (2, 4, 8)
    table = Table(["step", "learned from", *(f"K = {K}" for K in resamples), "renders"])
    for step in stages[:1] if bench.quick else stages:
        trainer, rng = at(run, step, bench), bench.rng()
        tried = {"paper": trainer.carv.proposal, **learned(trainer, rng)}
        found: dict[tuple[str, int], list[float]] = {(name, K): [] for name in tried for K in resamples}
        started = time.perf_counter()
        while time.perf_counter() - started < bench.budget or len(found["paper", resamples[0]]) < 2:
            _, z, condition = trainer.look(trainer.sampler.sample(1, rng), rng)
            gradient, rows = Gradient(z, trainer.parameters()), torch.zeros(2, dtype=torch.long, device=z.device)
            for (name, K), samples in found.items():
                carv = copy.copy(trainer.carv)
                carv.resamples, carv.proposal = K, tried[name].to(z.device)
                fbar = carv.estimate(z[rows], condition[rows], rng).fbar
                samples.append(float(within(torch.stack([gradient(one[None]) for one in fbar]))))
        for name in ("one draw", "a pair"):
            cells = [ratio(np.array(found[name, K]), np.array(found["paper", K])) for K in resamples]
            table.rows.append([step, name, *cells, len(found["paper", resamples[0]])])
    return table


@torch.no_grad()
def learned(trainer: Trainer, rng: torch.Generator) -> dict[str, Proposal]:
    """Proposals proportional to the root mean square of w(t) r, of one draw and of the mean of an antithetic pair."""
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
        pair = [
            carv.objective.residual(Draw(carv.model, carv.guidance, z[rows], t, e, condition[rows]))
            for e in (eps, -eps)
        ]
        for kind, r in enumerate((pair[0], (pair[0] + pair[1]) / 2)):
            squares[kind] += r.flatten(1).square().sum(1).double().cpu()
    of_bin = (torch.bucketize(support.double(), edges, right=True) - 1).clamp(0, BINS - 1)
    found = {}
    for name, mean in zip(("one draw", "a pair"), (squares / LEARNED_FROM).sqrt(), strict=True):
        q = torch.zeros_like(carv.p)
        q[support] = mean[of_bin] * carv.w[support]
        found[name] = Proposal.of(carv.p, (1 - FLOOR) * q / q.sum() + FLOOR * carv.p)
    return found


def automatic(bench: Bench) -> Table:
    """Every K's ECM at one render a step, as a share of the best one's, at three stages of runs in several regimes."""
    columns = ["regime", "step", "c_up / c_denoise", *(f"K = {K}" for K in LEVELS), "auto's K", "its share"]
    table = Table(columns)
    for regime in chosen(bench):
        with trained(bench, regime) as run:
            rows, steps = read_metrics(run.metrics_path), run.config.training.steps
            for step in (steps // 10, steps // 2, steps):
                trainer, rng = at(run, step, bench), bench.rng()
                trainer.renderer.update_occupancy(trainer.scene, trainer.step_count, rng)
                cost = cost_ratio(trainer)
                K = next(int(row["resamples"]) for row in reversed(rows) if row["step"] <= step)
                found = variances(trainer, sorted({*LEVELS, K}), 4 if bench.quick else 40, rng)
                waste = {k: (cost + k) * samples for k, samples in found.items()}
                best = min(waste, key=lambda k: waste[k].mean())
                shares = [f"{waste[best].mean() / waste[k].mean():.2f}" for k in LEVELS]
                table.rows.append([regime, step, f"{cost:.1f}", *shares, K, ratio(waste[best], waste[K])])
                bench.say(table.rows[-1])
    return table


def variances(
    trainer: Trainer, levels: Sequence[int], renders: int, rng: torch.Generator
) -> dict[int, NDArray[np.float64]]:
    """By K, a sample of the variance of one step a render (the first left out); the part between views is pooled."""
    meters = {K: VarianceMeter() for K in levels}
    for _ in range(renders):
        _, z, condition = trainer.look(trainer.sampler.sample(1, rng), rng)
        gradient = Gradient(z, trainer.parameters())
        for K, meter in meters.items():
            carv = with_resamples(trainer, K)
            meter.add(torch.stack([gradient(carv.estimate(z, condition, rng).fbar) for _ in range(2)]))
    between = np.mean([meter.samples()[0] for meter in meters.values()], 0)
    return {K: between + meter.samples()[1] for K, meter in meters.items()}


def with_resamples(trainer: Trainer, K: int) -> Carv:
    """The run's estimator with another K."""
    own = trainer.config.guidance
    return trainer.carv.replace(resamples=K, proposal=own.proposal, strata=own.strata, coupling=own.coupling)


def at(run: Run, step: int, bench: Bench) -> Trainer:
    """The trainer of a run's checkpoint, with the schedules of that step."""
    trainer = load_trainer(run, step)
    trainer.set_schedules()
    return trainer
