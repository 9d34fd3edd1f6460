"""Trials of the rendering backends on this machine, with times."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch

from carv3d.cameras import orbit
from carv3d.kernels import jit
from carv3d.renderers import SplatRenderer, VolumeRenderer, gsplat_backend, nerfacc_backend
from carv3d.renderers.config import Backend, RendererConfig
from carv3d.scenes import Gaussians, HashGrid, VoxelGrid, fused_hash_grid
from carv3d.scenes.config import GaussiansConfig, HashGridConfig, VoxelGridConfig

_SIZE = 64  # pixels a side
_POINTS = 2**15  # of the hash grid's trial
_ROUNDS = 3


@dataclass(frozen=True)
class Trial:
    """The trial of a backend: its name, whether it is all right, and the finding in one line. An optional backend
    that is missing is all right; torch must run.
    """

    name: str
    ok: bool
    found: str


@dataclass(frozen=True)
class _Work:
    """Work that torch does on any device: its name, a description, and a function that prepares it."""

    name: str
    what: str
    ready: Callable[[], Callable[[], None]]


def examine() -> list[Trial]:
    """Try every backend on the device of runs. It takes seconds, or minutes where kernels are built. For the
    alternatives to torch: whether they are installed, build and run, and their time over torch's.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    picture = f"{_SIZE} x {_SIZE}, forward and backward"
    splat = _Work("torch splat", picture, lambda: _splat(device, "torch"))
    volume = _Work("torch volume", picture, lambda: _volume(device, "torch"))
    grid = _Work("torch hash grid", f"{_POINTS} points, forward and backward", lambda: _encoding(device, fused=False))
    nerfacc = _Alternative("nerfacc", "nerfacc", nerfacc_backend.problem, lambda: _volume(device, "nerfacc"))
    numba = _Alternative("numba volume", "numba", jit.problem, lambda: _volume(device, "numba"))
    gsplat = _Alternative("gsplat", "gsplat", gsplat_backend.problem, lambda: _splat(device, "gsplat"))
    blend = _Alternative("numba splat", "numba", jit.problem, lambda: _splat(device, "numba"))
    fused = _Alternative("fused hash grid", "triton", fused_hash_grid.problem, lambda: _encoding(device, fused=True))
    encode = _Alternative("numba hash grid", "numba", jit.problem, lambda: _encoding(device, fused=True))
    return [
        *_compared(splat, [gsplat, blend], device),
        *_compared(volume, [nerfacc, numba], device),
        *_compared(grid, [fused, encode], device),
    ]


@dataclass(frozen=True)
class _Alternative:
    """What may do a work of torch: its name, the package that it needs, why it cannot be used, and the work."""

    name: str
    package: str
    problem: Callable[[torch.device], str | None]
    ready: Callable[[], Callable[[], None]]


def _compared(work: _Work, alternatives: Sequence[_Alternative], device: torch.device) -> list[Trial]:
    """The trial of torch, and those of its alternatives."""
    reference = _seconds(work.ready, device)
    if isinstance(reference, str):
        first = Trial(work.name, False, reference)
    else:
        first = Trial(work.name, True, f"runs on {device.type}: {1000 * reference:.1f} ms ({work.what})")
    return [first, *(_tried(alternative, reference, device) for alternative in alternatives)]


def _tried(one: _Alternative, reference: float | str, device: torch.device) -> Trial:
    """The trial of an alternative to torch, whose seconds or failure is `reference`."""
    try:
        before = f"{one.package} {version(one.package)} is installed"
    except PackageNotFoundError:
        return Trial(one.name, True, f"{one.package} is not installed; torch takes its place")
    if (found := one.problem(device)) is not None:
        return Trial(one.name, True, f"{before}; torch takes its place: {found}")
    mine = _seconds(one.ready, device)
    if isinstance(mine, str):
        return Trial(one.name, False, f"{before}, builds, {mine}")
    ratio = "" if isinstance(reference, str) else f", {mine / reference:.2f} of torch's"
    return Trial(one.name, True, f"{before}, builds, runs on {device.type}: {1000 * mine:.1f} ms{ratio}")


def _splat(device: torch.device, backend: Backend) -> Callable[[], None]:
    rng = torch.Generator(device).manual_seed(0)
    scene, cameras = Gaussians(GaussiansConfig(count=1000), rng), orbit(1, height=_SIZE, width=_SIZE).to(device)
    renderer = SplatRenderer(RendererConfig(backend=backend), device=device)
    return lambda: renderer(scene, cameras, rng).rgb.mean().backward()


def _volume(device: torch.device, backend: Backend) -> Callable[[], None]:
    rng = torch.Generator(device).manual_seed(0)
    scene, cameras = VoxelGrid(VoxelGridConfig(), rng), orbit(1, height=_SIZE, width=_SIZE).to(device)
    renderer = VolumeRenderer(RendererConfig(backend=backend), device=device).to(device)
    renderer.update_occupancy(scene, 0, rng)
    return lambda: renderer(scene, cameras, rng).rgb.mean().backward()


def _encoding(device: torch.device, *, fused: bool) -> Callable[[], None]:
    rng = torch.Generator(device).manual_seed(0)
    scene = HashGrid(HashGridConfig(log2_table=15), rng)
    points = 2 * torch.rand(_POINTS, 3, generator=rng, device=device) - 1
    return lambda: scene.encode(points, fused=fused).sum().backward()


def _seconds(ready: Callable[[], Callable[[], None]], device: torch.device) -> float | str:
    """The best of a few times; or the failure in one line."""
    seconds = []
    try:
        once = ready()
        for _ in range(_ROUNDS):
            started = _now(device)
            once()
            seconds.append(_now(device) - started)
    except Exception as error:  # the user must see any error
        return "fails: " + " ".join(str(error).split())[:200]
    return min(seconds)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
