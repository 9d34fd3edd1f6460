"""Where the time of a training step goes, for several K.

    python scripts/benchmark_step.py [CONFIG] [KEY=VALUE ...] [--resamples 1 2 4 8] [--steps 40]

The values of K take turns, so that what else the machine does falls on all of them alike. Prints milliseconds a step
and the ratio to the first K.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace

import torch
from rich.console import Console
from rich.table import Table

from carv3d import build
from carv3d.config import find_config, load
from carv3d.system.threads import set_threads
from carv3d.training.trainer import Trainer

PARTS = ("render", "encode", "denoise", "backward", "optimiser")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="CONFIG | KEY=VALUE")
    parser.add_argument("--resamples", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--steps", type=int, default=40, help="measured steps of each K")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    overrides = [word for word in options.words if "=" in word]
    names = [word for word in options.words if "=" not in word]
    config = load(find_config(names[0] if names else "shapes"), overrides)
    config.prompt = config.prompt or "a red mushroom"
    set_threads(config.threads)
    teacher = build.teacher(config, build.device(config))
    trainers = {}
    for count in options.resamples:
        mine = replace(config, guidance=replace(config.guidance, resamples=count))
        trainers[count] = Trainer(mine, teacher)
        for _ in range(20):  # warm-up, and a look at the occupancy
            trainers[count].step()
    totals = dict.fromkeys(options.resamples, 0.0)
    for _ in range(options.steps):
        for count, trainer in trainers.items():
            trainer.clock.running = True
            started = time.perf_counter()
            trainer.step()
            totals[count] += time.perf_counter() - started
    rows = []
    for count, trainer in trainers.items():
        milliseconds = {part: trainer.clock.seconds[part] * 1e3 / options.steps for part in PARTS}
        total = totals[count] * 1e3 / options.steps
        other = total - sum(milliseconds.values())
        ratio = totals[count] / totals[options.resamples[0]]
        rows.append({"K": count, **milliseconds, "other": other, "total": total, "ratio": ratio})
    if options.json:
        print(json.dumps(rows))
        return
    table = Table("K", *PARTS, "other", "total", "ratio", title=f"ms a step, {torch.get_num_threads()} threads")
    for row in rows:
        table.add_row(str(row["K"]), *(f"{row[key]:.1f}" for key in (*PARTS, "other", "total")), f"{row['ratio']:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
