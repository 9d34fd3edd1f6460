"""How many draws an attribution needs: independent, stratified, and stratified with opposite noises.

    python scripts/benchmark_attribution.py --json outputs/attribution.json --plot docs/images/attribution_draws.png

For some training pictures and samples of the built-in world, scores from B draws are correlated (Pearson, over the
training pictures, mean over samples and over sets of draws) with those from many draws that no other set contains. The
effective compute multiplier (ECM) says how many independent draws reach the same correlation, over B: log-log
interpolation of `1 / correlation^2 - 1` over B, beyond the measured ones in proportion to 1 / B. Beside it stands
what the paper (arXiv 2605.21489, table 4) has for its own, larger set-up.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from carv3d.attribution import Projection, RowGradients, SharedDraws
from carv3d.attribution.builtin_world import BuiltinWorld
from carv3d.attribution.pictures import Pictures
from carv3d.attribution.samples import sample_pictures
from carv3d.attribution.signatures import SignatureMaker
from carv3d.config import AttributeConfig
from carv3d.reports import png, subplots
from carv3d.shapes import COLOURS, SHAPES, Thing
from carv3d.teachers import DiffusersTeacher

PAPER = {4: (0.065, 0.166, 2.44), 16: (0.245, 0.407, 1.80), 64: (0.616, 0.805, 3.82), 256: (0.813, 0.916, 2.85)}
SETS = {4: 16, 16: 8, 64: 3, 256: 1}  # of coupled draws, by B
KINDS = {
    "independent": ("none", "independent"),
    "global strata": ("global", "independent"),
    "global strata, antithetic": ("global", "antithetic"),
}
Floats = NDArray[np.float64]


def cosines(signer: SignatureMaker, items: Pictures, queries: Pictures) -> Tensor:
    """(B, Q, N) cosines of every draw, not averaged."""
    with_items = [signer(items, [row]).direction[0] for row in range(len(items.names))]
    own = torch.cat([signer(queries, [row]).direction for row in range(len(queries.names))])
    return torch.einsum("qbd,nbd->bqn", own, torch.stack(with_items))


def correlations(found: Tensor, truth: Tensor) -> Floats:
    """(Q,) Pearson's over the training pictures, of scores (Q, N)."""
    x, y = (of.double() - of.double().mean(1, keepdim=True) for of in (found, truth))
    return ((x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1))).numpy()


def draws_for(correlation: float, budgets: list[int], independent: list[float]) -> float:
    """How many independent draws have this correlation."""
    noise = np.array([1 / c**2 - 1 for c in independent])
    wanted = 1 / correlation**2 - 1
    if wanted >= noise[0]:
        return float(budgets[0] * noise[0] / wanted)
    if wanted <= noise[-1]:
        return float(budgets[-1] * noise[-1] / wanted)
    order = np.argsort(noise)
    return float(np.exp(np.interp(np.log(wanted), np.log(noise[order]), np.log(np.array(budgets)[order]))))


def main() -> None:
    """Draw, correlate, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=24)
    parser.add_argument("--queries", type=int, default=4)
    parser.add_argument("--budgets", type=int, nargs="+", default=list(SETS))
    parser.add_argument("--reference", type=int, default=512, help="draws of the answer that others are held against")
    parser.add_argument("--layers", default=AttributeConfig().layers)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    teacher = DiffusersTeacher()
    gradients = RowGradients(teacher.family.network, options.layers)
    projection = Projection(gradients.sizes, AttributeConfig().projection.dimension, 0)
    items = BuiltinWorld(options.items, seed=5)
    shapes = list(SHAPES)
    prompts = [Thing(shapes[(5 * i) % 16], list(COLOURS)[(3 * i) % 10]).caption for i in range(options.queries)]
    queries = sample_pictures(teacher, prompts, count=1, scale=3.0, steps=30, seed=0)

    def per_draw(count: int, kind: str, seed: int) -> Tensor:
        strata, noise = KINDS[kind]
        rng = torch.Generator().manual_seed(seed)
        draws = SharedDraws.of(count, teacher.latent_shape, 1000, rng, strata=strata, coupling=noise)  # type: ignore[arg-type]
        return cosines(SignatureMaker(teacher, gradients, projection, draws, 32), items, queries)

    whole = per_draw(options.reference, "global strata", 10**6)
    truth = whole.mean(0)
    # Of two halves, each with every other stratum: how far the answer itself is from one of endless draws.
    halves = correlations(whole[::2].mean(0), whole[1::2].mean(0)).mean()
    print(f"reference: {time.perf_counter() - started:.0f} s; its halves correlate {halves:.3f}", flush=True)

    budgets: list[int] = options.budgets
    table: dict[str, dict[int, dict[str, float]]] = {kind: {} for kind in KINDS}
    pool = per_draw(2 * max(budgets), "independent", 1)  # any part of independent draws is such a set
    for kind, size in ((kind, size) for kind in KINDS for size in budgets):
        coupled = (per_draw(size, kind, 1000 * size + number) for number in range(SETS.get(size, 2)))
        sets = pool.split(size) if kind == "independent" else tuple(coupled)
        each = np.array([correlations(part.mean(0), truth) for part in sets])  # (sets, Q)
        table[kind][size] = {
            "correlation": float(each.mean()),
            "error": float(each.mean(0).std(ddof=1) / np.sqrt(each.shape[1])),  # over samples, which share nothing
            "sets": len(sets),
        }
        print(f"{kind}, {size}: {table[kind][size]} ({time.perf_counter() - started:.0f} s)", flush=True)
    independent = [table["independent"][size]["correlation"] for size in budgets]
    for kind, size in ((kind, size) for kind in KINDS for size in budgets):
        row = table[kind][size]
        row["ecm"] = draws_for(row["correlation"], budgets, independent) / size
    for size in budgets:
        cells = [f"{table[kind][size]['correlation']:.3f} ({table[kind][size]['ecm']:.2f})" for kind in KINDS]
        print(f"| {size} | {' | '.join(cells)} | {PAPER.get(size, '')} |")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        text = {"options": {k: str(v) for k, v in vars(options).items()}, "halves": float(halves), "table": table}
        options.json.write_text(json.dumps(text, indent=1) + "\n")
    if options.plot:
        draw(table, budgets, options.plot)


def draw(table: dict[str, dict[int, dict[str, float]]], budgets: list[int], path: Path) -> None:
    """Correlation over the number of draws."""
    figure, (axes,) = subplots()
    for kind, rows in table.items():
        axes.errorbar(
            budgets,
            [rows[B]["correlation"] for B in budgets],
            yerr=[rows[B]["error"] for B in budgets],
            marker="o",
            ms=4,
            capsize=2,
            label=kind,
        )
    known = [B for B in budgets if B in PAPER]
    for column, style, label in ((0, ":", "paper, independent"), (1, "--", "paper, stratified")):
        axes.plot(known, [PAPER[B][column] for B in known], style, color="#777777", label=label)
    axes.set(xscale="log", xlabel="draws", ylabel="correlation with the full answer", ylim=(0, 1))
    axes.set_xticks(budgets, [str(B) for B in budgets])
    axes.minorticks_off()
    axes.legend(fontsize=8)
    path.write_bytes(png(figure))


if __name__ == "__main__":
    main()
