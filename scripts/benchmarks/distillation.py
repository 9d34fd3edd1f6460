"""What K re-noisings of each output do for distillation: to the noise of a step, and to the generator at equal time.

`variance`: trace of the covariance of a step's estimate with R = 8, at the end of a run of 200 steps: of the
teacher's part of the score difference, of the difference, and of the generator's parameter gradient, with 95 %
intervals over outputs. `quality`: trains with each K for the same process time on one thread, and examines the
generators. `teacher`: the same examination of the teacher, in one step and in many.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from carv3d import build
from carv3d.accounting import Gradient, Interval, VarianceMeter
from carv3d.cameras import Cameras
from carv3d.config import DistillConfig, find_config, load, validate
from carv3d.distillation import DistillationRun, Distiller, load_distiller
from carv3d.distillation.conditions import Conditions
from carv3d.distillation.quality import Examiner, Sampler
from carv3d.guidance import guidance_of
from carv3d.objectives import Draw
from carv3d.objectives.distribution_matching import DistributionMatching
from carv3d.teachers import DiffusersTeacher
from carv3d.teachers.ddim import ddim_sample
from scripts.benchmarks.harness import Bench, Table

RENDERS = 8  # R of the table, as the paper's
KINDS: dict[str, tuple[Any, str]] = {
    "independent": ("none", "independent"),
    "stratified": ("render", "independent"),
    "stratified + antithetic": ("render", "antithetic"),
}
PAPER = {  # arXiv 2605.21489, table 3: score difference, parameter gradient
    (1, "independent"): (71.3, 982.0),
    (16, "independent"): (13.3, 59.9),
    (16, "stratified"): (12.0, 30.7),
}


class Parts(DistributionMatching):
    """The teacher's own part before the difference, along the channels, to measure what each adds to the noise."""

    def residual(self, draw: Draw) -> Tensor:
        """`real / size` and `(eps_guided - eps_fake) / size`."""
        real, size = self.real(draw)
        return torch.cat([real / size, super().residual(draw)], 1)


def measure(bench: Bench) -> Iterator[tuple[str, Table]]:
    """See the module."""
    if bench.wants("variance"):
        yield "variance", variance(bench)
    if bench.wants("quality"):
        yield "quality", quality(bench)
    if bench.wants("teacher"):
        yield "teacher", of_teacher(bench)


def variance(bench: Bench) -> Table:
    """A row for each K and coupling."""
    steps = 2 if bench.quick else 200
    path = bench.folder(f"distill-{steps}", bench.words)
    if not (path / "pipeline").exists():
        words = [f"training.steps={steps}", "training.preview_every=0", "threads=1"]
        words += [f"device={bench.device}", f"seed={bench.seed}"]
        command = [sys.executable, "-m", "carv3d", "distill"]
        again = (path / "environment.json").exists()
        command += ["--resume", str(path)] if again else [*words, *bench.words, "--output", str(path)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with DistillationRun.open(path) as run:
        distiller = load_distiller(run)
    resamples, outputs = ((1, 2), 3) if bench.quick else ((1, 4, 16), 96)
    tried = [(K, kind) for K in resamples for kind in KINDS if K > 1 or kind == "independent"]
    meters = {key: [VarianceMeter() for _ in range(3)] for key in tried}
    rng, parameters = bench.rng(), list(distiller.generator.network.parameters())
    for _ in range(outputs):
        z, condition = distiller.outputs(1, rng)
        gradient, rows = Gradient(z, parameters), torch.zeros(2, dtype=torch.long, device=z.device)
        for (K, kind), three in meters.items():
            strata, coupling = KINDS[kind]
            carv = distiller.carv.replace(resamples=K, proposal="uniform", strata=strata, coupling=coupling)
            carv.objective = Parts(distiller.fake)
            with distiller.arithmetic(), torch.no_grad():
                real, both = carv.estimate(z[rows], condition[rows], rng).fbar.chunk(2, 1)
            of_parameters = torch.stack([gradient(one[None]) for one in both])
            for meter, found in zip(three, (real.flatten(1), both.flatten(1), of_parameters), strict=True):
                meter.add(found)
    table = Table(["(R, K)", "draws", "teacher", "difference", "gradient", "within, of the gradient", "paper"])
    for (K, kind), three in meters.items():
        cells = [shown(meter.total, 1 / RENDERS) for meter in three] + [shown(three[2].within, 1 / RENDERS)]
        paper = PAPER.get((K, kind))
        table.rows.append([f"({RENDERS}, {K})", kind, *cells, f"{paper[0]:g} / {paper[1]:g}" if paper else None])
    return table


def quality(bench: Bench) -> Table:
    """Equal process time for every K, over seeds."""
    seconds, seeds, resamples = (1.0, 1, (1,)) if bench.quick else (bench.budget, 3, (1, 8))
    teacher = build.teacher(config_of(bench), bench.device)
    examiner = examiner_of(teacher, bench)
    table = Table(["K", "time, s", "steps", "retrieval, %", "PSNR, dB", "Fréchet distance"])
    for K in resamples:
        rows = []
        for seed in range(seeds):
            distiller, spent = Distiller(config_of(bench, f"seed={seed}", f"matching.resamples={K}"), teacher), 0.0
            while spent < seconds:
                started = time.process_time()  # on a busy machine it varies least
                distiller.step()
                spent += time.process_time() - started
            found = examiner(sampler_of(distiller))
            rows.append((spent, distiller.step_count, found.retrieval, found.psnr, found.frechet))
            bench.say(f"K = {K}, seed {seed}: {rows[-1]}")
        columns = [torch.tensor(column).double().numpy() for column in zip(*rows, strict=True)]
        cells = [shown(Interval.of_mean(column), scale) for column, scale in zip(columns[2:], (100, 1, 1), strict=True)]
        table.rows.append([K, f"{columns[0].mean():.0f}", f"{columns[1].mean():.0f}", *cells])
    return table


def of_teacher(bench: Bench) -> Table:
    """The teacher in one step and in many."""
    distiller = Distiller(config_of(bench))
    teacher = distiller.teacher
    examiner = examiner_of(teacher, bench)
    table = Table(["teacher", "guidance", "retrieval, %", "PSNR, dB", "Fréchet distance"])
    for steps in (1,) if bench.quick else (1, 30):
        for scale in (1.0,) if bench.quick else (1.0, 1.5, 3.0):
            sampler = in_one(teacher, distiller.timestep, scale) if steps == 1 else in_many(teacher, steps, scale)
            with distiller.arithmetic():
                found = examiner(sampler)
            cells = [f"{100 * found.retrieval:.1f}", f"{found.psnr:.1f}", f"{found.frechet:.3f}"]
            table.rows.append([f"{steps} step{'s' * (steps > 1)}", scale, *cells])
    return table


def examiner_of(teacher: Any, bench: Bench) -> Examiner:
    """With few pictures and views for a try."""
    small: dict[str, Any] = {"pictures": 16, "views": (4, 1)} if bench.quick else {}
    return Examiner(teacher, camera=teacher.takes_camera, **small)


def shown(interval: Interval, scale: float = 1.0) -> str:
    """A value with its interval."""
    return f"{interval.value * scale:.3g} ({interval.low * scale:.3g}-{interval.high * scale:.3g})"


def config_of(bench: Bench, *words: str) -> DistillConfig:
    """The config with overrides, checked."""
    config = load(find_config("distill"), [f"device={bench.device}", *bench.words, *words], of=DistillConfig)
    validate(config)
    return config


def sampler_of(distiller: Distiller) -> Sampler:
    """Latents by the averaged generator."""
    prompts = distiller.conditions.prompts

    def sample(texts: Sequence[str], cameras: Cameras, rng: torch.Generator) -> Tensor:
        return distiller.sample([prompts.index(text) for text in texts], cameras, rng)

    return sample


def in_many(teacher: DiffusersTeacher, steps: int, scale: float) -> Sampler:
    """Latents by DDIM."""

    def sample(texts: Sequence[str], cameras: Cameras, rng: torch.Generator) -> Tensor:
        condition = conditions_of(teacher, texts, cameras)
        return ddim_sample(teacher, condition, (len(texts), *teacher.latent_shape), rng, scale=scale, steps=steps)

    return sample


def in_one(teacher: DiffusersTeacher, timestep: int, scale: float) -> Sampler:
    """Latents as a generator makes them, by the teacher itself: the start of a distillation."""

    def sample(texts: Sequence[str], cameras: Cameras, rng: torch.Generator) -> Tensor:
        noise = torch.randn((len(texts), *teacher.latent_shape), generator=rng)
        t = torch.full((len(texts),), timestep)
        alpha, sigma = teacher.schedule.at(t, noise)
        guidance, condition = guidance_of(scale), conditions_of(teacher, texts, cameras)
        eps = guidance(teacher.predict(noise, t, condition, guidance.branches), condition)
        return (noise - sigma * eps) / alpha

    return sample


def conditions_of(teacher: DiffusersTeacher, texts: Sequence[str], cameras: Cameras) -> Any:
    """The condition of N texts and cameras."""
    known = list(dict.fromkeys(texts))
    return Conditions(teacher, known)(torch.tensor([known.index(text) for text in texts]), cameras)
