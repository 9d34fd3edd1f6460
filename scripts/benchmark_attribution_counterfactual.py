"""Does a query get worse without the training pictures that `carv3d attribute` ranks highest? By training again.

    python scripts/benchmark_attribution_counterfactual.py --json outputs/attribution_counterfactual.json

A small denoiser (an MLP on 12 x 12 pictures) is trained on a few hundred pictures of the built-in world. For held-out
queries it is then trained from scratch without the k training pictures of highest score, of lowest score, without the k
nearest in pixels, and without k random ones. What is reported is by how much the query's own loss rises over that of
the model trained on everything, in per cent, with 95 % intervals over queries and seeds. Draws, gradients, projection
and scores are the package's.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn

from carv3d.accounting import Interval
from carv3d.attribution import Projection, RowGradients, SharedDraws, ends, scores
from carv3d.attribution.builtin_world import BuiltinWorld
from carv3d.teachers import NoiseSchedule

SIZE, T, BATCH = 12, 1000, 64
WAYS = ("highest", "nearest pixels", "lowest", "random")


class Denoiser(nn.Module):
    """Velocity of a noisy picture (N, 3, SIZE, SIZE), told the timestep by sines and cosines."""

    def __init__(self, width: int) -> None:
        super().__init__()
        numbers = 3 * SIZE * SIZE
        self.first = nn.Linear(numbers + 32, width)
        self.second = nn.Linear(width, width)
        self.last = nn.Linear(width, numbers)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        rate = torch.exp(-torch.arange(16) * np.log(1000) / 16)
        phase = t[:, None] * rate
        h = F.silu(self.first(torch.cat([x.flatten(1), phase.sin(), phase.cos()], 1)))
        h = h + F.silu(self.second(h))
        return self.last(h).view_as(x)


def losses(model: nn.Module, schedule: NoiseSchedule, x: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """(N,) mean squared error of the velocity."""
    alpha, sigma = schedule.at(t, x)
    return (model(alpha * x + sigma * eps, t) - (alpha * eps - sigma * x)).square().flatten(1).mean(1)


def train(x: Tensor, schedule: NoiseSchedule, seed: int, steps: int, width: int) -> Denoiser:
    """From scratch, Adam with linear decay."""
    torch.manual_seed(seed)  # the initial weights
    model, g = Denoiser(width), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - step / steps)
        batch = x[torch.randint(len(x), (BATCH,), generator=g)]
        t = torch.randint(T, (BATCH,), generator=g)
        loss = losses(model, schedule, batch, t, torch.randn(batch.shape, generator=g)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def signatures(model: Denoiser, schedule: NoiseSchedule, x: Tensor, draws: SharedDraws, dimension: int) -> Tensor:
    """(N, B, D) of length 1."""
    gradients = RowGradients(model, "first|second|last")
    projection = Projection(gradients.sizes, dimension, 0)
    found = []
    for one in x:
        rows = one.expand(len(draws), -1, -1, -1)
        with torch.enable_grad():
            each = losses(model, schedule, rows, draws.t, draws.eps)
        found.append(F.normalize(projection(gradients(each))[0], dim=1))
    gradients.close()
    return torch.stack(found)


@torch.no_grad()
def loss_of(model: Denoiser, schedule: NoiseSchedule, x: Tensor, draws: SharedDraws) -> float:
    """One picture's mean loss over draws of its own."""
    return losses(model, schedule, x.expand(len(draws), -1, -1, -1), draws.t, draws.eps).mean().item()


def main() -> None:
    """Train, rank, leave out, train again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=240)
    parser.add_argument("--queries", type=int, default=10)
    parser.add_argument("--without", type=int, default=12, help="pictures left out")
    parser.add_argument("--draws", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    world = BuiltinWorld(options.items + options.queries, seed=1)
    order = torch.randperm(len(world.names), generator=torch.Generator().manual_seed(2)).tolist()
    pictures = F.interpolate(world.load(order), SIZE, mode="area") * 2 - 1
    x, queries = pictures[: options.items], pictures[options.items :]
    schedule = NoiseSchedule.of_betas("scaled_linear", 0.00085, 0.012, T)
    shape = (3, SIZE, SIZE)
    draws = SharedDraws.of(options.draws, shape, T, torch.Generator().manual_seed(3))
    test = SharedDraws.of(512, shape, T, torch.Generator().manual_seed(4))

    rise: dict[str, list[float]] = {way: [] for way in WAYS}
    k = options.without
    for seed in range(options.seeds):
        full = train(x, schedule, seed, options.steps, options.width)
        own, items = (signatures(full, schedule, of, draws, 512) for of in (queries, x))
        top, bottom = ends(scores(own, items.numpy()), k)
        near = torch.cdist(queries.flatten(1), x.flatten(1)).topk(k, largest=False).indices.numpy()
        g = torch.Generator().manual_seed(100 + seed)
        for q, query in enumerate(queries):
            before = loss_of(full, schedule, query, test)
            chosen = (top[q], near[q], bottom[q], torch.randperm(len(x), generator=g)[:k].numpy())
            for way, without in zip(WAYS, chosen, strict=True):
                keep = np.setdiff1d(np.arange(len(x)), without)
                model = train(x[keep], schedule, seed, options.steps, options.width)
                rise[way].append(100 * (loss_of(model, schedule, query, test) / before - 1))
        print(
            f"seed {seed}: {time.perf_counter() - started:.0f} s",
            {w: round(float(np.mean(v)), 2) for w, v in rise.items()},
            flush=True,
        )
    shared = [len(set(a) & set(b)) / k for a, b in zip(top, near, strict=True)]
    table = {}
    # Seeds of one query are no independent pictures: their mean counts once.
    means = {way: np.reshape(v, (options.seeds, -1)).mean(0) for way, v in rise.items()}
    for way in WAYS:
        found = Interval.of_mean(means[way])
        p = stats.ttest_rel(means[way], means["random"]).pvalue if way != "random" else None
        table[way] = {"rise_percent": found.value, "low": found.low, "high": found.high, "p_against_random": p}
    print(json.dumps({"table": table, "shared_by_highest_and_nearest": float(np.mean(shared))}, indent=1))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        text = {"options": {k: str(v) for k, v in vars(options).items()}, "table": table, "rises": rise}
        options.json.write_text(json.dumps(text, indent=1) + "\n")


if __name__ == "__main__":
    main()
