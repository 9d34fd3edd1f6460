"""What gradients of single rows and their projection cost, each way there is.

    python scripts/benchmark_attribution_cost.py

Milliseconds a (picture, draw) pair of the built-in teacher, best of some repeats that take turns. Gradients: one
backward pass with products of what the layers saw (`RowGradients`), `torch.func.vmap` of `grad`, and a loop over rows.
Projection to 512: the count sketch, a dense matrix of random signs made anew in blocks, and `traker`'s projector for
CPUs if that package is installed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from carv3d.attribution import Projection, RowGradients
from carv3d.config import AttributeConfig
from carv3d.teachers import DiffusersTeacher

DIMENSION = 512


def best(ways: dict[str, Callable[[], object]], rows: int, repeats: int) -> None:
    """Print the quickest of the repeats of each way."""
    times: dict[str, float] = {}
    for _ in range(repeats + 1):  # the first is warm-up
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            times[name] = min(times.get(name, 1e9), time.perf_counter() - started)
    for name, seconds in times.items():
        print(f"{name:<42} {seconds / rows * 1e3:8.2f} ms a pair", flush=True)


def main() -> None:
    """Time gradients, then projections."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", default=AttributeConfig().layers)
    parser.add_argument("--rows", type=int, default=AttributeConfig().rows)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    teacher = DiffusersTeacher()
    network = teacher.family.network
    n, g = options.rows, torch.Generator().manual_seed(0)
    z_t, eps = torch.randn(2, n, *teacher.latent_shape, generator=g)
    t = torch.randint(20, 980, (n,), generator=g)
    alpha, sigma = teacher.schedule.at(t, z_t)
    condition = teacher.caption_condition(["a red chair, side view"] * n, torch.zeros(n, 4))
    words, camera = condition.mixed(condition.cond), condition.camera
    assert camera is not None
    gradients = RowGradients(network, options.layers)
    names = [f"{layer}.{p}" for layer in gradients.layers for p, _ in gradients.layers[layer].named_parameters()]
    values = {name: p.detach() for name, p in network.named_parameters()}
    chosen = {name: values.pop(name) for name in names}
    print(f"{len(gradients.layers)} layers, {sum(gradients.sizes.values()):,} parameters, {n} pairs a call, 1 thread")

    def hooks() -> list[tuple[str, Tensor]]:
        eps_hat = teacher.family.eps_hat(z_t, t, words, camera)
        return list(gradients((eps_hat - eps).square().flatten(1).sum(1)))

    def one_loss(mine: dict[str, Tensor], z: Tensor, t: Tensor, text: Tensor, camera: Tensor, rest: Tensor) -> Tensor:
        arguments = {"class_labels": camera[None], "return_dict": False}
        v = functional_call(network, {**values, **mine}, (z[None], t[None], text[None]), arguments)[0][0]
        a, s, noise = rest[0], rest[1], rest[2:]
        return (a.mean() * v + s.mean() * z - noise.view_as(z)).square().sum()

    channels = z_t.shape[1]
    rest = torch.cat([alpha.expand(-1, 1, *z_t.shape[2:]), sigma.expand(-1, 1, *z_t.shape[2:]), eps], 1)
    rows = (z_t, t, words["text"], camera, rest)
    assert rest.shape[1] == channels + 2
    every = vmap(grad(one_loss), in_dims=(None, 0, 0, 0, 0, 0))
    single = grad(one_loss)

    def loop() -> None:
        for row in range(n):
            single(chosen, *(part[row] for part in rows))

    found = every(chosen, *rows)
    for name, mine in hooks():
        theirs = torch.cat([found[f"{name}.{p}"].flatten(1) for p, _ in gradients.layers[name].named_parameters()], 1)
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3 * theirs.abs().max().item())
    with torch.no_grad():
        forward = {"forward pass alone": lambda: teacher.family.eps_hat(z_t, t, words, camera)}
        best(dict(forward), n, options.repeats)
    ways = {"products of inputs and gradients (used)": hooks, "vmap of grad": lambda: every(chosen, *rows)}
    best({**ways, "a loop over rows": loop}, n, options.repeats)

    layers = hooks()
    sketch = Projection(gradients.sizes, DIMENSION, 0)
    whole = torch.cat([gradient for _, gradient in layers], 1)

    def dense() -> Tensor:
        rng, total = torch.Generator().manual_seed(0), torch.zeros(n, DIMENSION)
        for part in whole.split(8192, 1):
            signs = torch.empty(part.shape[1], DIMENSION).bernoulli_(0.5, generator=rng).mul_(2).sub_(1)
            total += part @ signs
        return total / DIMENSION**0.5

    ways = {"count sketch (used)": lambda: sketch(layers), "dense signs, made anew in blocks": dense}
    try:
        from trak.projectors import BasicProjector, ProjectionType

        trak = BasicProjector(whole.shape[1], DIMENSION, 0, ProjectionType.rademacher, torch.device("cpu"), 100)
        ways["traker's BasicProjector"] = lambda: trak.project(whole, model_id=0)
    except ImportError:
        print("traker is not installed: left out")
    best(ways, n, options.repeats)


if __name__ == "__main__":
    main()
