"""What can draw a scene on this machine: every backend is tried, and timed where it runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor

from carv3d.cameras import orbit
from carv3d.renderers import SplatRenderer, VolumeRenderer, gsplat_backend
from carv3d.renderers.compositing import nerfacc_accumulate, nerfacc_weights
from carv3d.renderers.splat import Backend
from carv3d.scenes import Gaussians, HashGrid, VoxelGrid, fused_hash_grid

_SIZE = 64  # pixels a side
_RAYS = (_SIZE**2, 32)  # of nerfacc's trial, and samples on each
_ROUNDS = 3


@dataclass(frozen=True)
class Trial:
    """Of one backend: its name, whether it does what it should, and what was found, in one line.

    Whether something optional is there does not matter for `ok`; that the torch renderers run does.
    """

    name: str
    ok: bool
    found: str


def examine() -> list[Trial]:
    """Try every backend on the device that runs go to; takes a second or two."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return [
        _tried("torch splat", lambda: _splat(device, "torch"), device),
        _gsplat(device),
        _tried("torch volume", lambda: _volume(device), device),
        _nerfacc(device),
        _hash_grid(device),
    ]


def _splat(device: torch.device, backend: Backend) -> None:
    rng = torch.Generator(device).manual_seed(0)
    renderer = SplatRenderer(backend=backend, device=device)
    render = renderer(Gaussians(count=1000, generator=rng), orbit(1, height=_SIZE, width=_SIZE).to(device), rng)
    render.rgb.mean().backward()


def _volume(device: torch.device) -> None:
    rng = torch.Generator(device).manual_seed(0)
    render = VolumeRenderer().to(device)(VoxelGrid(generator=rng), orbit(1, height=_SIZE, width=_SIZE).to(device), rng)
    render.rgb.mean().backward()


def _gsplat(device: torch.device) -> Trial:
    found = _installed("gsplat")
    if found is None:
        return Trial("gsplat", True, "not installed; splats are drawn by torch (pip install gsplat, for CUDA)")
    if (problem := gsplat_backend.problem(device)) is not None:
        return Trial("gsplat", True, f"{found} installed, not used: {problem}")
    return _tried("gsplat", lambda: _splat(device, "gsplat"), device, f"{found}, ")


def _nerfacc(device: torch.device) -> Trial:
    found = _installed("nerfacc")
    if found is None:
        return Trial("nerfacc", True, "not installed; volumes are composited by torch (pip install nerfacc)")

    def composite() -> None:
        density: Tensor = torch.ones(_RAYS, device=device, requires_grad=True)
        ends = torch.arange(1.0, _RAYS[1] + 1, device=device).expand(_RAYS)
        weights = nerfacc_weights(density, ends - 1, ends)
        nerfacc_accumulate(weights, weights[None]).mean().backward()

    used = "" if device.type == "cuda" else "used on CUDA only, "
    return _tried("nerfacc", composite, device, f"{found}, {used}dense mode ")


def _hash_grid(device: torch.device) -> Trial:
    if (problem := fused_hash_grid.problem(device)) is not None:
        return Trial("fused hash grid", True, f"not used: {problem}; hash grids are encoded by torch")

    def encode() -> None:
        scene = HashGrid(generator=torch.Generator(device).manual_seed(0))
        scene.encode(torch.rand(_SIZE**2, 3, device=device)).sum().backward()

    return _tried("fused hash grid", encode, device)


def _tried(name: str, trial: Callable[[], None], device: torch.device, before: str = "") -> Trial:
    """Run a trial, a few times for its best time."""
    seconds = []
    try:
        for _ in range(_ROUNDS):
            started = _now(device)
            trial()
            seconds.append(_now(device) - started)
    except Exception as error:  # whatever it is, it is what the user must see
        return Trial(name, False, f"{before}fails: " + " ".join(str(error).split())[:200])
    what = f"{_SIZE} x {_SIZE}, forward and backward"
    return Trial(name, True, f"{before}runs on {device.type}: {1000 * min(seconds):.0f} ms ({what})")


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
