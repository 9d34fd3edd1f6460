"""What K re-noisings of each output do for distillation: to the noise of a step, and to the generator at equal time.

    python scripts/benchmark_distillation.py variance outputs/distill/one-step-1 --step 200 --outputs 96
    python scripts/benchmark_distillation.py quality distill --seconds 120 --seeds 3 --resamples 1 8
    python scripts/benchmark_distillation.py teacher distill
    python scripts/benchmark_distillation.py run outputs/distill/one-step-1
    python scripts/benchmark_distillation.py picture outputs/distill/one-step-1 picture.png

`variance`: the trace of the covariance of a step's estimate with R = 8, at a checkpoint of a run: of the teacher's part
of the score difference, of the difference, and of the generator's parameter gradient, with 95 % intervals over outputs.
`quality`: trains with each K for the same time on one thread, and examines the generators on the way. `teacher`: the
same examination of the teacher, in one step and in many; `run`: of a run. Time is that of the process
(`time.process_time`), which on an idle machine is the wall-clock's, and which others at work on the machine change
least.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from carv3d import build
from carv3d.accounting import Gradient, Interval, VarianceMeter
from carv3d.cameras import Cameras
from carv3d.config import DistillConfig, find_config, load, validate
from carv3d.distillation import DistillationRun, Distiller, load_distiller
from carv3d.distillation.conditions import Conditions
from carv3d.distillation.quality import AZIMUTHS, ELEVATIONS, Examiner, Sampler
from carv3d.guidance import guidance_of
from carv3d.images import sheet
from carv3d.objectives import Draw
from carv3d.objectives.distribution_matching import DistributionMatching
from carv3d.sampling import StrataKind
from carv3d.shapes import assorted
from carv3d.teachers import DiffusersTeacher
from carv3d.teachers.ddim import ddim_sample

RENDERS = 8  # R of the table, as the paper's
KINDS: dict[str, tuple[StrataKind, str]] = {
    "independent": ("none", "independent"),
    "stratified": ("render", "independent"),
    "stratified + antithetic": ("render", "antithetic"),
}
PAPER = {  # arXiv 2605.21489, table 3: score difference, parameter gradient
    (1, "independent"): (71.3, 982.0),
    (16, "independent"): (13.3, 59.9),
    (16, "stratified"): (12.0, 30.7),
}
CHECKS = 2  # examinations of a run


class Parts(DistributionMatching):
    """The teacher's own part before the difference, along the channels: to see what each adds to the noise."""

    def residual(self, draw: Draw) -> Tensor:
        """`real / size` and `(eps_guided - eps_fake) / size`."""
        real, size = self.real(draw)
        return torch.cat([real / size, super().residual(draw)], 1)


def shown(interval: Interval, scale: float = 1.0) -> str:
    """A value with its interval."""
    return f"{interval.value * scale:.3g} ({interval.low * scale:.3g}-{interval.high * scale:.3g})"


def replicates(
    distiller: Distiller, z: Tensor, told: Any, K: int, kind: str, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Two estimates (2, C, h, w) each of the teacher's part of the difference and of the difference, for one output."""
    rows = torch.zeros(2, dtype=torch.long, device=z.device)
    strata, noise = KINDS[kind]
    carv = distiller.carv.replace(resamples=K, proposal="uniform", strata=strata, coupling=noise)
    carv.objective = Parts(distiller.fake)
    real, both = carv.estimate(z[rows], told[rows], rng).fbar.chunk(2, 1)
    return real, both


def variance(options: argparse.Namespace) -> dict[str, Any]:
    """The table of a checkpoint."""
    with DistillationRun.open(options.run) as run:
        distiller = load_distiller(run, options.step)
    tried = [(K, kind) for K in options.resamples for kind in KINDS if K > 1 or kind == "independent"]
    meters = {key: [VarianceMeter() for _ in range(3)] for key in tried}
    rng = torch.Generator(distiller.device).manual_seed(options.seed)
    parameters = list(distiller.generator.network.parameters())
    for _ in range(options.outputs):
        z, told = distiller.outputs(1, rng)
        gradient = Gradient(z, parameters)
        for key in tried:
            with distiller.arithmetic(), torch.no_grad():
                real, both = replicates(distiller, z, told, *key, rng)
            of_parameters = torch.stack([gradient(one[None]) for one in both])
            for meter, found in zip(meters[key], (real.flatten(1), both.flatten(1), of_parameters), strict=True):
                meter.add(found)
    print(f"step {distiller.step_count}, {options.outputs} outputs, R = {RENDERS}\n")
    print("| (R, K) | draws | teacher | difference | gradient | within, of the gradient | paper |")
    print("|---|---|---|---|---|---|---|")
    rows = []
    for (K, kind), three in meters.items():
        paper = PAPER.get((K, kind))
        cells = [shown(meter.total, 1 / RENDERS) for meter in three] + [shown(three[2].within, 1 / RENDERS)]
        cells.append(f"{paper[0]:g} / {paper[1]:g}" if paper else "")
        print(f"| ({RENDERS}, {K}) | {kind} | " + " | ".join(cells) + " |", flush=True)
        names = ("teacher", "difference", "gradient")
        parts = {
            name: {part: asdict(getattr(meter, part)) for part in ("total", "between", "within")}
            for name, meter in zip(names, three, strict=True)
        }
        rows.append({"R": RENDERS, "K": K, "draws": kind, "paper": paper, "of_one_output": parts})
    return {"step": distiller.step_count, "outputs": options.outputs, "rows": rows}


def config_of(options: argparse.Namespace, **changes: Any) -> DistillConfig:
    """The config with overrides, checked."""
    words = [*options.overrides, *(f"{key.replace('__', '.')}={value}" for key, value in changes.items())]
    config = load(find_config(options.config), words, of=DistillConfig)
    validate(config)
    return config


def sampler_of(distiller: Distiller) -> Sampler:
    """Latents by the averaged generator in hand."""
    prompts = distiller.conditions.prompts

    def sample(texts: Sequence[str], cameras: Cameras, rng: torch.Generator) -> Tensor:
        return distiller.sample([prompts.index(text) for text in texts], cameras, rng)

    return sample


def quality(options: argparse.Namespace) -> dict[str, Any]:
    """Equal time for every K, by seed."""
    config = config_of(options)
    teacher = build.teacher(config.shared(), build.device(config.shared()))
    examiner = Examiner(teacher, camera=teacher.takes_camera)
    print(f"Fréchet distance of true pictures to true pictures: {examiner.floor:.3f}\n", flush=True)
    found: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        for K in options.resamples:
            distiller, spent = Distiller(config_of(options, seed=seed, matching__resamples=K), teacher), 0.0
            for check in range(1, CHECKS + 1):
                while spent < options.seconds * check / CHECKS:
                    started = time.process_time()
                    distiller.step()
                    spent += time.process_time() - started
                row = {"seed": seed, "K": K, "seconds": spent, "steps": distiller.step_count}
                found.append(row | asdict(examiner(sampler_of(distiller))) | {"check": check})
                print(json.dumps(found[-1]), flush=True)
    print("\n| K | time, s | steps | retrieval, % | PSNR, dB | Fréchet distance |\n|---|---|---|---|---|---|")
    for check in range(1, CHECKS + 1):
        for K in options.resamples:
            rows = [row for row in found if (row["K"], row["check"]) == (K, check)]
            column = {key: torch.tensor([float(row[key]) for row in rows]).double().numpy() for key in rows[0]}
            cells = [f"{column['seconds'].mean():.0f}", f"{column['steps'].mean():.0f}"]
            cells += [shown(Interval.of_mean(column["retrieval"]), 100)]
            cells += [shown(Interval.of_mean(column[key])) for key in ("psnr", "frechet")]
            print(f"| {K} | " + " | ".join(cells) + " |")
    return {"floor": examiner.floor, "rows": found}


def in_many(teacher: DiffusersTeacher, steps: int, scale: float) -> Sampler:
    """Latents by DDIM."""

    def sample(texts: Sequence[str], cameras: Cameras, rng: torch.Generator) -> Tensor:
        told = conditions_of(teacher, texts, cameras)
        return ddim_sample(teacher, told, (len(texts), *teacher.latent_shape), rng, scale=scale, steps=steps)

    return sample


def in_one(teacher: DiffusersTeacher, timestep: int, scale: float) -> Sampler:
    """Latents as a generator makes them, by the teacher as it is: what distillation starts from."""

    def sample(texts: Sequence[str], cameras: Cameras, rng: torch.Generator) -> Tensor:
        noise = torch.randn((len(texts), *teacher.latent_shape), generator=rng)
        t = torch.full((len(texts),), timestep)
        alpha, sigma = teacher.schedule.at(t, noise)
        guidance, told = guidance_of(scale), conditions_of(teacher, texts, cameras)
        eps = guidance(teacher.predict(noise, t, told, guidance.branches), told)
        return (noise - sigma * eps) / alpha

    return sample


def of_teacher(options: argparse.Namespace) -> dict[str, Any]:
    """The teacher in one step and in many."""
    distiller = Distiller(config_of(options))
    teacher = distiller.teacher
    examiner = Examiner(teacher, camera=teacher.takes_camera)
    print(f"Fréchet distance of true pictures to true pictures: {examiner.floor:.3f}\n")
    print("| teacher | guidance | retrieval, % | PSNR, dB | Fréchet distance |\n|---|---|---|---|---|")
    rows = []
    for steps in dict.fromkeys((1, options.steps)):
        for scale in options.scales:
            sampler = in_one(teacher, distiller.timestep, scale) if steps == 1 else in_many(teacher, steps, scale)
            with distiller.arithmetic():
                found = examiner(sampler)
            rows.append({"steps": steps, "scale": scale} | asdict(found))
            cells = f"{100 * found.retrieval:.1f} | {found.psnr:.1f} | {found.frechet:.3f}"
            print(f"| {steps} step{'s' * (steps > 1)} | {scale:g} | {cells} |", flush=True)
    return {"floor": examiner.floor, "rows": rows}


def of_run(options: argparse.Namespace) -> dict[str, Any]:
    """A run's generator, at its last checkpoint or another."""
    with DistillationRun.open(options.run) as run:
        distiller = load_distiller(run, options.step)
    examiner = Examiner(distiller.teacher, camera=distiller.teacher.takes_camera)
    found = {"step": distiller.step_count, "floor": examiner.floor} | asdict(examiner(sampler_of(distiller)))
    print(json.dumps(found))
    return found


def picture(options: argparse.Namespace) -> dict[str, Any]:
    """The same prompts and noises by the teacher at once, by the generator, and by the teacher in many steps."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    with DistillationRun.open(options.run) as run:
        distiller = load_distiller(run)
    teacher, scale = distiller.teacher, distiller.config.matching.scale
    texts = [thing.caption for thing in assorted()[1::3] for _ in range(2)]
    cameras = Cameras.look_at_origin(
        torch.tensor(AZIMUTHS).repeat(len(texts) // 4), torch.tensor(ELEVATIONS).repeat(len(texts) // 4)
    )
    titles = {
        "teacher, 1 step": in_one(teacher, distiller.timestep, 1.0),
        "distilled, 1 step": sampler_of(distiller),
        "teacher, 30 steps": in_many(teacher, 30, scale),
    }
    figure, axes = plt.subplots(1, 3, figsize=(15, 2.9), dpi=80)
    for axis, (title, sampler) in zip(axes, titles.items(), strict=True):
        shown = teacher.decode(sampler(texts, cameras, torch.Generator().manual_seed(options.seed)))
        axis.imshow(sheet(shown, 8, gap=4).permute(1, 2, 0).numpy())
        axis.set_title(title)
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(options.output)
    return {}


def conditions_of(teacher: DiffusersTeacher, texts: Sequence[str], cameras: Cameras) -> Any:
    """The condition of N texts and cameras."""
    known = list(dict.fromkeys(texts))
    return Conditions(teacher, known)(torch.tensor([known.index(text) for text in texts]), cameras)


def main() -> None:
    """Measure and print markdown; --json has everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    verbs = parser.add_subparsers(dest="verb", required=True)
    of = verbs.add_parser("variance")
    of.add_argument("run", type=Path)
    of.add_argument("--step", type=int)
    of.add_argument("--outputs", type=int, default=96)
    of.add_argument("--resamples", type=int, nargs="+", default=[1, 4, 16])
    of.add_argument("--seed", type=int, default=0)
    of.set_defaults(measure=variance)
    of = verbs.add_parser("quality")
    of.add_argument("config", nargs="?", default="distill")
    of.add_argument("overrides", nargs="*", default=[])
    of.add_argument("--seconds", type=float, default=120.0)
    of.add_argument("--seeds", type=int, default=3)
    of.add_argument("--resamples", type=int, nargs="+", default=[1, 8])
    of.set_defaults(measure=quality)
    of = verbs.add_parser("run")
    of.add_argument("run", type=Path)
    of.add_argument("--step", type=int)
    of.set_defaults(measure=of_run)
    of = verbs.add_parser("picture")
    of.add_argument("run", type=Path)
    of.add_argument("output", type=Path)
    of.add_argument("--seed", type=int, default=0)
    of.set_defaults(measure=picture)
    of = verbs.add_parser("teacher")
    of.add_argument("config", nargs="?", default="distill")
    of.add_argument("overrides", nargs="*", default=[])
    of.add_argument("--steps", type=int, default=30)
    of.add_argument("--scales", type=float, nargs="+", default=[1.0, 1.5, 3.0])
    of.set_defaults(measure=of_teacher)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = options.measure(options)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
