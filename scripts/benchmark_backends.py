"""What the CUDA backends gain over plain torch, and how far they agree with it.

    python scripts/benchmark_backends.py [--sizes 64 256 512] [--rounds 20]

Draws the same scene by torch and by gsplat, nerfacc or the fused hash grid, turn by turn, forward and backward. Prints
Markdown: the largest difference of a colour; of the gradients by the scene's parameters the cosine, and the bias, how
much longer or shorter the other one's is along the signs of torch's; and the median times.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from carv3d.cameras import orbit
from carv3d.renderers import Render, Renderer, SplatRenderer, VolumeRenderer, gsplat_backend, nerfacc_backend
from carv3d.renderers.backend import Backend
from carv3d.scenes import Gaussians, HashGrid, RadianceField, Scene, VoxelGrid, fused_hash_grid


class TorchHashGrid(HashGrid):
    """A hash grid that torch encodes on CUDA too."""

    def encode(self, points: Tensor, *, fused: bool = True) -> Tensor:
        return super().encode(points, fused=False)


@dataclass(frozen=True)
class Row:
    """Of one backend at one size, `size` pixels a side: see the script's docstring; times in ms."""

    name: str
    size: int
    difference: float
    cosine: float
    bias: float
    torch_ms: float
    other_ms: float


Subject = tuple[Scene, Renderer[Any]]
"""What is drawn, and by what."""


def splats(backend: Backend, device: torch.device) -> Subject:
    """10,000 Gaussians of degree 0."""
    rng = torch.Generator(device).manual_seed(0)
    return Gaussians(count=10_000, generator=rng), SplatRenderer(backend=backend, device=device)


def volume(backend: Backend, device: torch.device) -> Subject:
    """The default voxel grid, with its mask of what is empty."""
    rng = torch.Generator(device).manual_seed(0)
    return pruned(VoxelGrid(generator=rng), VolumeRenderer(backend=backend, device=device), rng)


def hash_grid(kind: type[HashGrid], device: torch.device) -> Subject:
    """The default hash grid, composited by torch, with its mask."""
    rng = torch.Generator(device).manual_seed(0)
    return pruned(kind(generator=rng), VolumeRenderer(backend="torch", device=device), rng)


def pruned(scene: RadianceField, renderer: VolumeRenderer, rng: torch.Generator) -> Subject:
    """Both, the scene made uneven, and the renderer's mask of it looked up."""
    with torch.no_grad():
        for parameter in scene.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=rng, device=rng.device)
    renderer.to(rng.device)
    renderer.update_occupancy(scene, 0, rng)
    return scene, renderer


def compare(name: str, pair: tuple[Subject, Subject], size: int, rounds: int, device: torch.device) -> Row:
    """Draw both scenes of a pair, torch's first, `rounds` times in turns, each time with the same jitter."""
    cameras = orbit(1, height=size, width=size).to(device)
    pull = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1)).to(device)
    times: list[list[float]] = [[], []]
    found: list[tuple[Render, Tensor]] = []
    for turn in range(rounds + 2):  # the first two warm up
        found.clear()
        for (scene, renderer), seconds in zip(pair, times, strict=True):
            scene.zero_grad()
            rng = torch.Generator(device).manual_seed(turn)
            started = now(device)
            render = renderer(scene, cameras, rng)
            (render.rgb * pull).mean().backward()
            seconds.append(now(device) - started)
            gradients = [p.grad.flatten() for p in scene.parameters() if p.grad is not None]
            found.append((render, torch.cat(gradients).double()))
    (mine, one), (other, two) = found
    return Row(
        name,
        size,
        (other.rgb - mine.rgb).abs().max().item(),
        torch.cosine_similarity(one, two, dim=0).item(),
        (((two - one) * one.sign()).sum() / one.abs().sum()).item(),
        *(1000 * statistics.median(seconds[2:]) for seconds in times),
    )


def now(device: torch.device) -> float:
    """Seconds, when the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def markdown(rows: list[Row], title: str) -> str:
    """A table."""
    lines = [
        title,
        "",
        "| backend | pixels | largest difference | gradients' cosine | bias | torch, ms | its own, ms | ratio |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        agreement = f"{row.difference:.1e} | {row.cosine:.6f} | {row.bias:+.1e}"
        times = f"{row.torch_ms:.1f} | {row.other_ms:.1f} | {row.other_ms / row.torch_ms:.2f}"
        lines.append(f"| {row.name} | {row.size} × {row.size} | {agreement} | {times} |")
    return "\n".join(lines)


def compare_all(device: torch.device, sizes: Sequence[int], rounds: int) -> tuple[list[Row], list[str]]:
    """Every backend at every size; and a line for each that does not work here."""
    candidates: list[tuple[str, str | None, Callable[[], tuple[Subject, Subject]]]] = [
        ("gsplat", gsplat_backend.problem(device), lambda: (splats("torch", device), splats("gsplat", device))),
        ("nerfacc", nerfacc_backend.problem(device), lambda: (volume("torch", device), volume("nerfacc", device))),
        (
            "fused hash grid",
            fused_hash_grid.problem(device),
            lambda: (hash_grid(TorchHashGrid, device), hash_grid(HashGrid, device)),
        ),
    ]
    rows: list[Row] = []
    missing: list[str] = []
    for name, problem, pair in candidates:
        if problem is not None:
            missing.append(f"- not compared: {problem}")
            continue
        rows += [compare(name, pair(), size, rounds, device) for size in sizes]
    return rows, missing


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256, 512], help="pixels a side")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("There is nothing to compare: gsplat, nerfacc and the fused hash grid need a CUDA device.")
        return
    device = torch.device("cuda")
    rows, missing = compare_all(device, options.sizes, options.rounds)
    title = f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, medians of {options.rounds} rounds"
    print("\n".join([markdown(rows, title), *missing]))


if __name__ == "__main__":
    main()
