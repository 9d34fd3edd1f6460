"""What a step takes at real sizes, and what reusing a render saves: time, memory, share of the device's peak.

    python scripts/benchmark.py sd15 sd21-base sdxl                    # on a CUDA card
    python scripts/benchmark.py sd15 --device cpu teacher.image_size=256

For each config a teacher of the model's size with random weights (`scripts/random_teacher.py`) is written to --work
and loaded as any other; the scene is the config's own. Steps of all (R, K) take turns, and each one's quickest
round counts. The naive loop makes what a step of (1, K) makes, without reuse: K renders, encodings, teacher calls and
backward passes.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from random_teacher import UNETS, make
from torch.utils.flop_counter import FlopCounterMode

from carv3d import build
from carv3d.accounting import CostMeter
from carv3d.config import find_config, load, validate
from carv3d.runs.environment import cpu_name, device_name
from carv3d.system.clock import Clock
from carv3d.system.threads import set_threads
from carv3d.training.trainer import Trainer

PARTS = ("render", "encode", "denoise", "backward")
NAIVE = 0  # stands for R in the naive loop's key
GIB = 2**30


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """The most FLOP/s that a large product of matrices comes to."""
    side = 8192 if device.type == "cuda" else 1536
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    meter = CostMeter(Clock())
    for _ in range(6):
        meter.round({(1, 1): lambda: a @ b})
    return 2 * side**3 / meter.total((1, 1))


def flops_of_a_draw(trainer: Trainer) -> float:
    """Of the teacher's residual for one (t, eps), guidance's branches included."""
    rng = torch.Generator(trainer.device).manual_seed(0)
    with torch.no_grad():
        _, z, condition = trainer.look(trainer.sampler.sample(1, rng), rng)
    t = torch.full((1,), 500, device=z.device)
    with FlopCounterMode(display=False) as counter:
        trainer.teacher.predict(z, t, condition, trainer.carv.guidance.branches)
    return float(counter.get_total_flops())


def naive(trainer: Trainer, carv: Any, count: int, rng: torch.Generator) -> None:
    """`count` whole passes of K = 1, whose gradients add up."""
    for _ in range(count):
        trainer.trial(1, carv, rng)


def measure(name: str, words: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """All figures of one model."""
    folder = make(name, options.work / f"{name}{'-tiny' * (options.divide > 1)}", divide=options.divide)
    own = [f"teacher.path={folder}", "teacher.mirrors=[]", "teacher.cache_text=false", "prompt=a thing"]
    if options.device == "cpu":
        own += ["device=cpu", "teacher.dtype=float32"]
    config = load(find_config(name), [*own, *words])
    validate(config)
    set_threads(config.threads)
    device = build.device(config)
    trainer = Trainer(config, build.teacher(config, device))
    trainer.set_schedules()
    rng = torch.Generator(device).manual_seed(0)
    kind, strata, noise = config.guidance.proposal, config.guidance.strata, config.guidance.coupling

    def carv(K: int) -> Any:
        return trainer.carv.replace(resamples=K, proposal=kind, strata=strata, coupling=noise)

    steps: dict[tuple[int, int], Any] = {(R, K): partial(trainer.trial, R, carv(K), rng) for R, K in options.grid}
    steps[NAIVE, options.naive] = partial(naive, trainer, carv(1), options.naive, rng)
    memory = {}
    for setting, step in steps.items():  # warm-up
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        step()
        trainer.optimizer.zero_grad()
        memory[setting] = torch.cuda.max_memory_allocated(device) / GIB if device.type == "cuda" else None
    meter = CostMeter(trainer.clock)
    for _ in range(options.rounds):
        meter.round(steps)
        trainer.optimizer.zero_grad()
    flops, peak = flops_of_a_draw(trainer), matmul_peak(device, trainer.teacher.dtype)  # type: ignore[attr-defined]
    rows = []
    for (R, K), _ in steps.items():
        parts = meter.parts((R, K))
        draws = K if R == NAIVE else R * K
        row = {"R": R, "K": K, "memory": memory[R, K], "teacher_flops": draws * flops / parts["denoise"]}
        rows.append(row | {part: parts.get(part, 0.0) for part in (*PARTS, "total")})
    return {
        "model": name,
        "image_size": trainer.teacher.image_size,
        "device": cpu_name() if device.type == "cpu" else device_name(device),
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "torch": str(torch.__version__),
        "dtype": config.teacher.dtype,
        "flops_of_a_draw": flops,
        "matmul_peak": peak,
        "rows": rows,
    }


def show(found: dict[str, Any]) -> None:
    """Markdown, ratios first."""
    rows = found["rows"]
    threads = f", {found['threads']} threads" if found["threads"] else ""
    print(f"\n**{found['model']}**, {found['dtype']}, pictures of {found['image_size']}, ", end="")
    print(f"on {found['device']}{threads}, ", end="")
    print(f"torch {found['torch']}. A draw is {found['flops_of_a_draw'] / 1e12:.3f} TFLOP with guidance; ", end="")
    print(f"large products come to {found['matmul_peak'] / 1e12:.3g} TFLOP/s.\n")
    loop = next(row for row in rows if row["R"] == NAIVE)
    same = next((row for row in rows if (row["R"], row["K"]) == (1, loop["K"])), None)
    if same:
        ratio = same["total"] / loop["total"]
        print(f"One render for K = {loop['K']} takes {ratio:.2f} of the naive loop's time ({1 / ratio:.2f}x).\n")
    print("| (R, K) | to (1, 1) | ms | " + " | ".join(PARTS) + " | teacher, share of peak | peak memory |")
    print("|---|---|---|" + "---|" * (len(PARTS) + 2))
    for row in rows:
        name = f"naive, K = {row['K']}" if row["R"] == NAIVE else f"({row['R']}, {row['K']})"
        cells = [name, f"{row['total'] / rows[0]['total']:.2f}", f"{1e3 * row['total']:.0f}"]
        cells += [f"{1e3 * row[part]:.0f}" for part in PARTS]
        cells.append(f"{row['teacher_flops'] / found['matmul_peak']:.0%}")
        cells.append("-" if row["memory"] is None else f"{row['memory']:.1f} GiB")
        print("| " + " | ".join(cells) + " |", flush=True)


def pair(text: str) -> tuple[int, int]:
    """`1,8`."""
    R, K = (int(word) for word in text.split(","))
    return R, K


def main() -> None:
    """Measure and print markdown; --json has everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="+", metavar="CONFIG | KEY=VALUE", help=", ".join(UNETS))
    parser.add_argument("--grid", type=pair, nargs="+", default=[(1, 1), (4, 1), (1, 4), (1, 8), (1, 16)])
    parser.add_argument("--naive", type=int, default=8, help="K of the naive loop")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--divide", type=int, default=1, help="the networks' channels by this, for a try")
    parser.add_argument("--work", type=Path, default=Path("outputs/random"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_intermixed_args()
    words = [word for word in options.words if "=" in word]
    every = []
    for name in (word for word in options.words if "=" not in word):
        if name not in UNETS:
            parser.error(f"{name} has no known size: {', '.join(UNETS)}")
        every.append(measure(name, words, options))
        show(every[-1])
    if options.json:
        options.json.write_text(json.dumps(every, indent=1) + "\n")


if __name__ == "__main__":
    main()
