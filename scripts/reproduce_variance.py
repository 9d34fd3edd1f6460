"""The paper's tables of ECM and RE, measured in the built-in world, beside the paper's own columns.

    python scripts/reproduce_variance.py --budget 300

Trains one prompt (an ordinary run in OUT, kept if it is there), measures it at three stages, and writes the tables
into docs/benchmarks.md between its `variance` marks. The variances are measured; costs are given twice, as measured
and for the paper's ratio of upstream to teacher cost.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from carv3d.config import find_config, load
from carv3d.errors import UserError
from carv3d.generation.generation import load_trainer
from carv3d.measurement import NoiseReport, Observation, observe, report
from carv3d.runs import Run, replace_file, slug
from carv3d.runs.environment import cpu_name, device_name
from carv3d.system.threads import set_threads

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"
MARKS = "<!-- variance -->\n", "<!-- /variance -->\n"
RATIO = 4.0  # c_up / c_denoise that fits the paper's table
METHODS = ("uniform", "importance", "stratified", "importance + stratified")
# Paper, text-to-3D: by K, ECM of the four methods, then RE of the last three.
PAPER = {
    1: ((1.00, 1.24, 1.00, 1.24), (1.24, 1.00, 1.24)),
    2: ((1.57, 1.93, 1.66, 2.05), (1.23, 1.06, 1.30)),
    4: ((2.24, 2.68, 2.47, 2.94), (1.20, 1.11, 1.31)),
    8: ((2.63, 3.01, 2.96, 3.29), (1.14, 1.12, 1.25)),
    16: ((2.52, 2.75, 2.75, 2.94), (1.09, 1.09, 1.17)),
}


def train(prompt: str, out: Path) -> Path:
    """A run of the prompt with every stage's checkpoint kept."""
    path = out / slug(prompt)
    command = [sys.executable, "-m", "carv3d", "generate"]
    if (path / "environment.json").exists():
        command += ["--resume", str(path)]
    else:
        every = load(find_config("shapes")).training.steps // 10
        command += [prompt, "training.keep_checkpoints=1000", f"training.checkpoint_every={every}", "mesh.formats=[]"]
        command += ["turntable.frames=2", "turntable.size=64", "--output", str(path)]
    if not (path / "turntable.mp4").exists():
        subprocess.run(command, check=True)
    return path


def tables(stage: str, found: NoiseReport, simulated: NoiseReport) -> str:
    """Markdown: what was found in words, and the table. Cells are the four methods, uniform first."""
    share, worst = found.within.value / found.between.value, max(row.z for row in found.rows)

    def best(one: NoiseReport) -> str:
        row = one.recommended
        return (
            f"{row.method}, R = {row.R}, K = {row.K} with ECM {row.ecm:.2f} ({row.ecm_low:.2f} to {row.ecm_high:.2f})"
        )

    def cell(one: NoiseReport, K: int, figure: str, names: Sequence[str]) -> str:
        rows = {row.method: row for row in one.rows if (row.R, row.K) == (1, K)}
        plain = {"stratified": "uniform", "importance + stratified": "importance"}  # strata of one draw are none
        return " / ".join(f"{getattr(rows.get(name) or rows[plain[name]], figure):.2f}" for name in names)

    lines = [
        f"**{stage}** ({found.renders} renders, largest z of a method's bias {worst:.1f}). W/A = {share:.2f}, "
        f"c_up / c_denoise = {found.measured_cost.ratio:.1f}. As measured, the best K of uniform draws is predicted "
        f"at {found.predicted_resamples:.1f}, and the best setting found is {best(found)}. At ratio {RATIO:.0f}: "
        f"{simulated.predicted_resamples:.1f}, and {best(simulated)}.",
        "",
        f"| K | ECM as measured | ECM at ratio {RATIO:.0f} | ECM in the paper | RE | RE in the paper |",
        "|---|---|---|---|---|---|",
    ]
    for K, (ecm, re) in PAPER.items():
        ours = [cell(one, K, "ecm", METHODS) for one in (found, simulated)]
        theirs, re_ours = " / ".join(f"{x:.2f}" for x in ecm), cell(found, K, "re", METHODS[1:])
        cells = [*ours, theirs, re_ours, " / ".join(f"{x:.2f}" for x in re)]
        lines.append(f"| {K} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", default="a red mushroom")
    parser.add_argument("--out", type=Path, default=Path("outputs/reproduce"))
    parser.add_argument("--budget", type=float, default=300.0, help="seconds a stage")
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    text = options.page.read_text()
    if not all(mark in text for mark in MARKS):
        raise UserError(f"{options.page} has no lines {MARKS[0].strip()} and {MARKS[1].strip()} to write between")
    parts = []
    with Run.open(train(options.prompt, options.out)) as run:
        steps = run.config.training.steps
        set_threads(run.config)
        for step in (steps // 10, steps // 10 * 5, steps):
            trainer = load_trainer(run, step)
            observed: Observation = observe(trainer, budget=options.budget, precision=0.02)
            stage = f"After {step} of {steps} steps"
            parts.append(tables(stage, report(observed), report(observed, RATIO)))
            print(parts[-1], flush=True)
        machine = f"{cpu_name()}, {torch.get_num_threads()} threads"
        if trainer.device.type == "cuda":
            machine = device_name(trainer.device)
    head = f'"{options.prompt}", {machine}, `python scripts/reproduce_variance.py --budget {options.budget:.0f}`.\n\n'
    before, after = text.split(MARKS[0])[0], text.split(MARKS[1])[1]
    replace_file(options.page, (before + MARKS[0] + head + "\n".join(parts) + MARKS[1] + after).encode())


if __name__ == "__main__":
    main()
