"""Where the time of a training step goes: by K in the built-in world, and at the size of Stable Diffusion.

`steps`: milliseconds a step, the values of K in turns. `sizes`: a teacher of the model's size with random weights,
loaded as any other; the naive loop makes what a step of (1, K) makes without reuse: K renders, encodings, teacher
calls and backward passes. Words without `=` name the models (default sd15).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch.utils.flop_counter import FlopCounterMode

from carv3d import build
from carv3d.accounting import CostMeter
from carv3d.config import find_config, load, validate
from carv3d.errors import UserError
from carv3d.system.clock import Clock
from carv3d.training.trainer import Trainer
from scripts.benchmarks.harness import Bench, Table, now
from scripts.random_teacher import UNETS, make

PARTS = ("render", "encode", "denoise", "backward")
NAIVE = 0  # in place of R in the naive loop's key
GIB = 2**30


def measure(bench: Bench) -> Iterator[tuple[str, Table]]:
    """See the module."""
    models = [word for word in bench.words if "=" not in word] or ["sd15"]
    if unknown := [model for model in models if model not in UNETS]:
        raise UserError(f"{unknown[0]} has no known size: use {', '.join(UNETS)}")
    if bench.wants("steps"):
        yield "steps", by_resamples(bench)
    for model in models:
        if bench.wants(model):
            yield model, at_size(model, bench)


def by_resamples(bench: Bench) -> Table:
    """Early in a run, after the first updates of the occupancy."""
    config = load(find_config("shapes"), [f"device={bench.device}", *(w for w in bench.words if "=" in w)])
    config.prompt = config.prompt or "a red mushroom"
    teacher, warm_up, steps = build.teacher(config, bench.device), *((2, 2) if bench.quick else (20, 40))
    trainers = {}
    for K in (1, 2) if bench.quick else (1, 2, 4, 8):
        trainers[K] = Trainer(replace(config, guidance=replace(config.guidance, resamples=K)), teacher)
        for _ in range(warm_up):
            trainers[K].step()
        trainers[K].clock.running = True
    totals = dict.fromkeys(trainers, 0.0)
    for _ in range(steps):
        for K, trainer in trainers.items():
            started = now(bench.device)
            trainer.step()
            totals[K] += now(bench.device) - started
    table = Table(["K", *PARTS, "optimiser", "total, ms", "ratio"])
    for K, trainer in trainers.items():
        parts = [trainer.clock.seconds[part] for part in (*PARTS, "optimiser")]
        cells = [f"{1e3 * seconds / steps:.1f}" for seconds in (*parts, totals[K])]
        table.rows.append([K, *cells, f"{totals[K] / totals[1]:.2f}"])
    return table


def at_size(model: str, bench: Bench) -> Table:
    """Steps of all (R, K) in turns; the fastest round of each counts."""
    folder = make(model, bench.out / f"{model}{'-tiny' * bench.quick}", divide=10 if bench.quick else 1)
    words = [f"teacher.path={folder}", "teacher.mirrors=[]", "teacher.cache_text=false", "prompt=a thing"]
    words += [f"device={bench.device}", *(["teacher.dtype=float32"] if bench.device.type == "cpu" else [])]
    if bench.quick:
        words += ["teacher.image_size=64", "cameras.height=16", "cameras.width=16", "renderer.samples=8"]
        words += ["scene.type=voxel_grid", "scene.resolution=16"]
    config = load(find_config(model), [*words, *(word for word in bench.words if "=" in word)])
    validate(config)
    trainer, rng, own = Trainer(config), bench.rng(), config.guidance
    trainer.set_schedules()

    def carv(K: int) -> object:
        return trainer.carv.replace(resamples=K, proposal=own.proposal, strata=own.strata, coupling=own.coupling)

    def naive(count: int) -> None:
        for _ in range(count):
            trainer.trial(1, carv(1), rng)  # type: ignore[arg-type]

    most = 2 if bench.quick else 8
    grid = [(1, 1), (1, most)] if bench.quick else [(1, 1), (4, 1), (1, 4), (1, 8), (1, 16)]
    steps: dict[tuple[int, int], Callable[[], object]] = {
        (R, K): partial(trainer.trial, R, carv(K), rng)  # type: ignore[arg-type]
        for R, K in grid
    }
    steps[NAIVE, most] = partial(naive, most)
    memory: dict[tuple[int, int], float] = {}
    for setting, step in steps.items():  # warm-up
        if bench.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(bench.device)
        step()
        trainer.optimizer.zero_grad()
        if bench.device.type == "cuda":
            memory[setting] = torch.cuda.max_memory_allocated(bench.device) / GIB
    meter = CostMeter(trainer.clock)
    for _ in range(1 if bench.quick else 5):
        meter.round(steps)  # type: ignore[arg-type]
        trainer.optimizer.zero_grad()
    peak, flops = matmul_peak(bench.device, trainer.teacher.dtype), flops_of_a_draw(trainer)  # type: ignore[attr-defined]
    table = Table(["(R, K)", "to (1, 1)", "ms", *PARTS, "teacher, share of peak", "peak memory"])
    for R, K in steps:
        parts, draws = meter.parts((R, K)), K if R == NAIVE else R * K
        name = f"naive, K = {K}" if R == NAIVE else f"({R}, {K})"
        cells = [f"{1e3 * parts.get(part, 0.0):.0f}" for part in ("total", *PARTS)]
        share = f"{draws * flops / parts['denoise'] / peak:.0%}"
        used = f"{memory[R, K]:.1f} GiB" if memory else None
        table.rows.append([name, f"{meter.total((R, K)) / meter.total((1, 1)):.2f}", *cells, share, used])
    return table


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """The FLOP/s of a large matrix product."""
    side = 8192 if device.type == "cuda" else 1024
    rng = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(side, side, device=device, generator=rng).to(dtype) for _ in range(2))
    meter = CostMeter(Clock())
    for _ in range(4):
        meter.round({(1, 1): lambda: a @ b})
    return 2 * side**3 / meter.total((1, 1))


def flops_of_a_draw(trainer: Trainer) -> float:
    """Of the teacher's prediction for one (t, eps), with guidance's branches."""
    rng = torch.Generator(trainer.device).manual_seed(0)
    with torch.no_grad():
        _, z, condition = trainer.look(trainer.sampler.sample(1, rng), rng)
    t = torch.full((1,), 500, device=z.device)
    with FlopCounterMode(display=False) as counter:
        trainer.teacher.predict(z, t, condition, trainer.carv.guidance.branches)
    return float(counter.get_total_flops())
