"""What compiled kernels gain over plain torch, and how far they agree with it.

The same scene is drawn by torch and by a backend, in turns, forward and backward: on CUDA gsplat, nerfacc and the fused
hash grid, on the CPU numba's kernels of the three kinds of scenes.
Columns: the largest difference of a colour; of the gradients by the scene's parameters the cosine, and the bias
(the relative difference along the signs of torch's); and the median times.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from carv3d.cameras import orbit
from carv3d.kernels import jit
from carv3d.renderers import Render, Renderer, SplatRenderer, VolumeRenderer, gsplat_backend, nerfacc_backend
from carv3d.renderers.config import Backend, RendererConfig
from carv3d.scenes import Gaussians, HashGrid, RadianceField, Scene, VoxelGrid, fused_hash_grid
from carv3d.scenes.config import GaussiansConfig, HashGridConfig, VoxelGridConfig
from scripts.benchmarks.harness import Bench, Table, now

COLUMNS = ["backend", "pixels", "largest difference", "cosine", "bias", "torch, ms", "its own, ms", "ratio"]
Subject = tuple[Scene, Renderer[Any]]


@dataclass(frozen=True)
class Row:
    """One backend at one size, `size` pixels a side; see the module; times in ms."""

    name: str
    size: int
    difference: float
    cosine: float
    bias: float
    torch_ms: float
    other_ms: float

    def cells(self) -> list[Any]:
        """As in the table."""
        agreement = [f"{self.difference:.1e}", f"{self.cosine:.6f}", f"{self.bias:+.1e}"]
        times = [f"{self.torch_ms:.1f}", f"{self.other_ms:.1f}", f"{self.other_ms / self.torch_ms:.2f}"]
        return [self.name, f"{self.size} × {self.size}", *agreement, *times]


class TorchHashGrid(HashGrid):
    """A hash grid that torch encodes on every device."""

    def encode(self, points: Tensor, *, fused: bool = True) -> Tensor:
        return super().encode(points, fused=False)


def measure(bench: Bench) -> Iterator[tuple[str, Table]]:
    """One table, if any backend works on the device."""
    on_gpu = bench.device.type == "cuda"
    sizes, rounds = ((64, 256, 512), 20) if on_gpu else ((64, 256), 5)
    if bench.quick:
        sizes, rounds = (64,), 2
    table, problems = compare_all(bench.device, sizes, rounds)
    for problem in problems:
        bench.say(f"not compared: {problem}")
    if table.rows:
        yield bench.device.type, table


def compare_all(device: torch.device, sizes: Sequence[int], rounds: int) -> tuple[Table, list[str]]:
    """Every backend at every size; and why a backend does not work here."""
    candidates: list[tuple[str, str | None, Callable[[], tuple[Subject, Subject]]]] = [
        ("gsplat", gsplat_backend.problem(device), lambda: (splats("torch", device), splats("gsplat", device))),
        ("nerfacc", nerfacc_backend.problem(device), lambda: (volume("torch", device), volume("nerfacc", device))),
        (
            "fused hash grid",
            fused_hash_grid.problem(device),
            lambda: (hash_grid(TorchHashGrid, device), hash_grid(HashGrid, device)),
        ),
        ("numba, Gaussians", jit.problem(device), lambda: (splats("torch", device), splats("numba", device))),
        ("numba, voxel grid", jit.problem(device), lambda: (volume("torch", device), volume("numba", device))),
        (
            "numba, hash grid",
            jit.problem(device),
            lambda: (hash_grid(TorchHashGrid, device), hash_grid(HashGrid, device)),
        ),
    ]
    table = Table(COLUMNS)
    for name, problem, pair in candidates:
        if problem is None:
            table.rows += [compare(name, pair(), size, rounds, device).cells() for size in sizes]
    return table, list(dict.fromkeys(problem for _, problem, _ in candidates if problem is not None))


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
    difference = (other.rgb - mine.rgb).abs().max().item()
    cosine = torch.cosine_similarity(one, two, dim=0).item()
    bias = (((two - one) * one.sign()).sum() / one.abs().sum()).item()
    return Row(name, size, difference, cosine, bias, *(1000 * statistics.median(seconds[2:]) for seconds in times))


def splats(backend: Backend, device: torch.device) -> Subject:
    """10,000 Gaussians of degree 0."""
    rng = torch.Generator(device).manual_seed(0)
    return Gaussians(GaussiansConfig(count=10_000), rng), SplatRenderer(RendererConfig(backend=backend), device=device)


def volume(backend: Backend, device: torch.device) -> Subject:
    """The default voxel grid, with its occupancy."""
    rng = torch.Generator(device).manual_seed(0)
    return pruned(
        VoxelGrid(VoxelGridConfig(), rng), VolumeRenderer(RendererConfig(backend=backend), device=device), rng
    )


def hash_grid(kind: type[HashGrid], device: torch.device) -> Subject:
    """The default hash grid, composited by torch, with its occupancy."""
    rng = torch.Generator(device).manual_seed(0)
    return pruned(kind(HashGridConfig(), rng), VolumeRenderer(RendererConfig(backend="torch"), device=device), rng)


def pruned(scene: RadianceField, renderer: VolumeRenderer, rng: torch.Generator) -> Subject:
    """The scene made uneven, and the renderer with its occupancy."""
    with torch.no_grad():
        for parameter in scene.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=rng, device=rng.device)
    renderer.to(rng.device)
    renderer.update_occupancy(scene, 0, rng)
    return scene, renderer
