"""Attribution: how many draws it needs, what a gradient costs, and whether the highest-ranked pictures matter.

`draws`: scores from B draws are correlated (Pearson, over the training pictures) with those from many other draws;
ECM is the number of independent draws that reach the same correlation, over B. `cost`: milliseconds a (picture,
draw) pair, all ways in turns. `counterfactual`: a small denoiser is trained again without the k pictures of highest
score, nearest in pixels, of lowest score, and at random; by how much the query's own loss rises, in per cent, with
95 % intervals. `cost` and `counterfactual` are for the CPU: they need `--device cpu` where there is a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from carv3d.accounting import Interval
from carv3d.attribution import Projection, RowGradients, SharedDraws, ends, scores
from carv3d.attribution.builtin_world import BuiltinWorld
from carv3d.attribution.samples import sample_pictures
from carv3d.attribution.signatures import SignatureMaker
from carv3d.config import AttributeConfig
from carv3d.shapes import COLOURS, SHAPES, Thing
from carv3d.teachers import DiffusersTeacher, NoiseSchedule
from scripts.benchmarks.harness import Bench, Table, in_turns

# arXiv 2605.21489, table 4: by B, correlation of independent and of stratified draws, and ECM.
PAPER = {4: (0.065, 0.166, 2.44), 16: (0.245, 0.407, 1.80), 64: (0.616, 0.805, 3.82), 256: (0.813, 0.916, 2.85)}
SETS = {4: 16, 16: 8, 64: 3, 256: 1}  # sets of coupled draws, by B
KINDS = {
    "independent": ("none", "independent"),
    "global strata": ("global", "independent"),
    "global strata, antithetic": ("global", "antithetic"),
}


def measure(bench: Bench) -> Iterator[tuple[str, Table]]:
    """See the module."""
    if bench.wants("draws"):
        yield "draws", draws(bench)
    if bench.device.type != "cpu":  # the next two run on the CPU: they must not be told as a GPU's
        return
    if bench.wants("cost"):
        yield "cost", cost(bench)
    if bench.wants("counterfactual"):
        yield "counterfactual", counterfactual(bench)


# ------------------------------------------------------------------------------------------------- draws


def draws(bench: Bench) -> Table:
    """A row for each B."""
    config = AttributeConfig()
    count, queries, reference = (4, 1, 16) if bench.quick else (24, 4, 512)
    budgets = [4] if bench.quick else list(SETS)
    teacher = DiffusersTeacher(device=bench.device)
    gradients = RowGradients(teacher.family.network, config.layers)
    projection = Projection(gradients.sizes, config.projection.dimension, 0)
    items, names = BuiltinWorld(count, seed=5), list(SHAPES)
    prompts = [Thing(names[(5 * i) % 16], list(COLOURS)[(3 * i) % 10]).caption for i in range(queries)]
    samples = sample_pictures(teacher, prompts, count=1, scale=3.0, steps=4 if bench.quick else 30, seed=0)

    def per_draw(size: int, kind: str, seed: int) -> Tensor:
        """(B, Q, N) cosines of every draw, not averaged."""
        strata, coupling = KINDS[kind]
        rng = torch.Generator().manual_seed(seed)
        shared = SharedDraws.of(size, teacher.latent_shape, 1000, rng, strata=strata, coupling=coupling)  # type: ignore[arg-type]
        maker = SignatureMaker(teacher, gradients, projection, shared, 32)
        own, theirs = (
            torch.cat([maker(of, [row]).direction for row in range(len(of.names))]) for of in (samples, items)
        )
        return torch.einsum("qbd,nbd->bqn", own, theirs)

    truth = per_draw(reference, "global strata", 10**6).mean(0)
    pool = per_draw(2 * max(budgets), "independent", 1)  # any part of independent draws is such a set
    found: dict[tuple[str, int], float] = {}
    for kind in KINDS:
        for size in budgets:
            coupled = (per_draw(size, kind, 1000 * size + number) for number in range(SETS[size]))
            sets = pool.split(size) if kind == "independent" else tuple(coupled)
            found[kind, size] = float(np.mean([correlations(part.mean(0), truth) for part in sets]))
            bench.say(f"{kind}, {size}: {found[kind, size]:.3f}")
    independent = [found["independent", size] for size in budgets]
    table = Table(["draws", *KINDS, "paper, independent", "paper, stratified"])
    for size in budgets:
        cells = [
            f"{found[kind, size]:.3f} ({draws_for(found[kind, size], budgets, independent) / size:.2f})"
            for kind in KINDS
        ]
        paper = PAPER[size]
        table.rows.append([size, *cells, f"{paper[0]:.3f}", f"{paper[1]:.3f} ({paper[2]:.2f})"])
    return table


def correlations(found: Tensor, truth: Tensor) -> np.ndarray:
    """(Q,) Pearson's over the training pictures, of scores (Q, N)."""
    x, y = (of.double() - of.double().mean(1, keepdim=True) for of in (found, truth))
    return ((x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1))).numpy()


def draws_for(correlation: float, budgets: list[int], independent: list[float]) -> float:
    """How many independent draws have this correlation: log-log interpolation of `1 / correlation^2 - 1` over B."""
    noise, wanted = np.array([1 / c**2 - 1 for c in independent]), 1 / correlation**2 - 1
    if wanted >= noise[0] or wanted <= noise[-1]:  # beyond the measured ones in proportion to 1 / B
        end = 0 if wanted >= noise[0] else -1
        return float(budgets[end] * noise[end] / wanted)
    order = np.argsort(noise)
    return float(np.exp(np.interp(np.log(wanted), np.log(noise[order]), np.log(np.array(budgets)[order]))))


# -------------------------------------------------------------------------------------------------- cost


def cost(bench: Bench) -> Table:
    """Gradients of single rows by `RowGradients`, by vmap of grad and by a loop; projections to 512 numbers."""
    teacher, config = DiffusersTeacher(), AttributeConfig()
    network, n, rounds = teacher.family.network, 4 if bench.quick else config.rows, 1 if bench.quick else 3
    g = torch.Generator().manual_seed(bench.seed)
    z_t, eps = torch.randn(2, n, *teacher.latent_shape, generator=g)
    t = torch.randint(20, 980, (n,), generator=g)
    alpha, sigma = teacher.schedule.at(t, z_t)
    condition = teacher.caption_condition(["a red chair, side view"] * n, torch.zeros(n, 4))
    embeddings, camera = condition.mixed(condition.cond), condition.camera
    assert camera is not None
    gradients = RowGradients(network, config.layers)
    names = [f"{layer}.{p}" for layer in gradients.layers for p, _ in gradients.layers[layer].named_parameters()]
    values = {name: p.detach() for name, p in network.named_parameters()}
    chosen = {name: values.pop(name) for name in names}

    def hooks() -> list[tuple[str, Tensor]]:
        eps_hat = teacher.family.eps_hat(z_t, t, embeddings, camera)
        return list(gradients((eps_hat - eps).square().flatten(1).sum(1)))

    def one_loss(mine: dict[str, Tensor], z: Tensor, t: Tensor, text: Tensor, camera: Tensor, rest: Tensor) -> Tensor:
        arguments = {"class_labels": camera[None], "return_dict": False}
        v = functional_call(network, {**values, **mine}, (z[None], t[None], text[None]), arguments)[0][0]
        a, s, noise = rest[0], rest[1], rest[2:]
        return (a.mean() * v + s.mean() * z - noise.view_as(z)).square().sum()

    rest = torch.cat([alpha.expand(-1, 1, *z_t.shape[2:]), sigma.expand(-1, 1, *z_t.shape[2:]), eps], 1)
    rows = (z_t, t, embeddings["text"], camera, rest)
    every, single = vmap(grad(one_loss), in_dims=(None, 0, 0, 0, 0, 0)), grad(one_loss)
    layers = hooks()
    whole, sketch = torch.cat([gradient for _, gradient in layers], 1), Projection(gradients.sizes, 512, 0)

    def dense() -> Tensor:
        rng, total = torch.Generator().manual_seed(0), torch.zeros(n, 512)
        for part in whole.split(8192, 1):
            total += part @ torch.empty(part.shape[1], 512).bernoulli_(0.5, generator=rng).mul_(2).sub_(1)
        return total / 512**0.5

    ways: dict[str, Callable[[], object]] = {
        "gradients: products of inputs and gradients (used)": hooks,
        "gradients: vmap of grad": lambda: every(chosen, *rows),
        "gradients: a loop over rows": lambda: [single(chosen, *(part[row] for part in rows)) for row in range(n)],
        "projection: count sketch (used)": lambda: sketch(layers),
        "projection: dense signs, made in blocks": dense,
    }
    seconds = in_turns(ways, rounds, torch.device("cpu"))
    return Table(["way", "ms a pair"], [[name, f"{1e3 * min(found) / n:.2f}"] for name, found in seconds.items()])


# --------------------------------------------------------------------------------------- counterfactual

SIZE, T, BATCH = 12, 1000, 64
WAYS = ("highest", "nearest pixels", "lowest", "random")


class Denoiser(nn.Module):
    """Velocity of a noisy picture (N, 3, SIZE, SIZE), with sines and cosines of the timestep."""

    def __init__(self, width: int) -> None:
        super().__init__()
        numbers = 3 * SIZE * SIZE
        self.first = nn.Linear(numbers + 32, width)
        self.second = nn.Linear(width, width)
        self.last = nn.Linear(width, numbers)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        phase = t[:, None] * torch.exp(-torch.arange(16) * math.log(1000) / 16)
        h = F.silu(self.first(torch.cat([x.flatten(1), phase.sin(), phase.cos()], 1)))
        h = h + F.silu(self.second(h))
        return self.last(h).view_as(x)


def losses(model: nn.Module, schedule: NoiseSchedule, x: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """(N,) mean squared error of the velocity."""
    alpha, sigma = schedule.at(t, x)
    return (model(alpha * x + sigma * eps, t) - (alpha * eps - sigma * x)).square().flatten(1).mean(1)


def counterfactual(bench: Bench) -> Table:
    """Train, rank, leave out, train again."""
    items, queries, k, count, seeds, steps, width = (
        (40, 1, 4, 8, 1, 20, 32) if bench.quick else (240, 10, 12, 128, 3, 800, 128)
    )
    world = BuiltinWorld(items + queries, seed=1)
    order = torch.randperm(len(world.names), generator=torch.Generator().manual_seed(2)).tolist()
    x, asked = (F.interpolate(world.load(order), SIZE, mode="area") * 2 - 1).split([items, queries])
    schedule, shape = NoiseSchedule.of_betas("scaled_linear", 0.00085, 0.012, T), (3, SIZE, SIZE)
    shared = SharedDraws.of(count, shape, T, torch.Generator().manual_seed(3))
    test = SharedDraws.of(4 * count, shape, T, torch.Generator().manual_seed(4))

    def train(x: Tensor, seed: int) -> Denoiser:
        with torch.random.fork_rng():
            torch.manual_seed(seed)  # the initial weights
            model = Denoiser(width)
        g, optimizer = torch.Generator().manual_seed(seed), torch.optim.Adam(model.parameters())
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = 2e-3 * (1 - step / steps)
            batch = x[torch.randint(len(x), (BATCH,), generator=g)]
            t = torch.randint(T, (BATCH,), generator=g)
            loss = losses(model, schedule, batch, t, torch.randn(batch.shape, generator=g)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return model.eval()

    def signatures(model: Denoiser, x: Tensor) -> Tensor:
        gradients, found = RowGradients(model, "first|second|last"), []
        projection = Projection(gradients.sizes, 512, 0)
        for one in x:
            each = losses(model, schedule, one.expand(len(shared), -1, -1, -1), shared.t, shared.eps)
            found.append(F.normalize(projection(gradients(each))[0], dim=1))
        gradients.close()
        return torch.stack(found)

    @torch.no_grad()
    def loss_of(model: Denoiser, x: Tensor) -> float:
        return losses(model, schedule, x.expand(len(test), -1, -1, -1), test.t, test.eps).mean().item()

    rise: Mapping[str, list[float]] = {way: [] for way in WAYS}
    for seed in range(seeds):
        full = train(x, seed)
        top, bottom = ends(scores(signatures(full, asked), signatures(full, x).numpy()), k)
        near = torch.cdist(asked.flatten(1), x.flatten(1)).topk(k, largest=False).indices.numpy()
        g = torch.Generator().manual_seed(100 + seed)
        for q, query in enumerate(asked):
            before = loss_of(full, query)
            left_out = (top[q], near[q], bottom[q], torch.randperm(len(x), generator=g)[:k].numpy())
            for way, without in zip(WAYS, left_out, strict=True):
                model = train(x[np.setdiff1d(np.arange(len(x)), without)], seed)
                rise[way].append(100 * (loss_of(model, query) / before - 1))
        bench.say(f"seed {seed}: { ({way: round(float(np.mean(values)), 2) for way, values in rise.items()}) }")
    # Seeds of one query are not independent: their mean counts once.
    means = {way: np.reshape(values, (seeds, -1)).mean(0) for way, values in rise.items()}
    table = Table(["left out", "rise of the query's loss, %", "p against random"])
    for way in WAYS:
        found = Interval.of_mean(means[way])
        p = None if way == "random" else f"{stats.ttest_rel(means[way], means['random']).pvalue:.2g}"
        table.rows.append([way, f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})", p])
    return table
