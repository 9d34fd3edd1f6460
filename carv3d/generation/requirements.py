"""The memory that a run's scene needs, measured on small pictures before the run."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from functools import partial

import torch

from carv3d import build
from carv3d.config import Config
from carv3d.scenes import fused_hash_grid
from carv3d.scenes.hash_grid import HashGrid
from carv3d.teachers.memory import bytes_of, peak_of

_SMALL, _LARGE = 16, 32  # pixels a side of the two pictures
_MOMENTS = 2  # of Adam, of the size of the parameters


@dataclass(frozen=True)
class SceneMemory:
    """Bytes that a scene needs on its device.

    Attributes:
        kept: parameters, their gradients and the optimiser's moments.
        render: of the renders of a step, with what the backward pass keeps, of the scene at its start.
    """

    kept: int
    render: int


def scene_memory(config: Config, device: torch.device) -> SceneMemory:
    """The memory of a config's scene in a step.

    The peak is measured on pictures of two sizes, on the CPU, and extrapolated by the number of pixels. Normals count
    if the run will ask for them. It is that of torch's code; nerfacc and gsplat need about as much or less.

    Args:
        config: its scene, renderer, cameras, renders and regularisers.
        device: where it would run: whether the hash grid is encoded by a kernel.
    """
    config = deepcopy(config)
    if hasattr(config.renderer, "backend"):
        config.renderer.backend = "torch" if device.type == "cuda" else config.renderer.backend
    cpu, rng = torch.device("cpu"), torch.Generator().manual_seed(0)
    scene, renderer, sampler = build.scene(config, rng), build.renderer(config, cpu), build.camera_sampler(config)
    if isinstance(scene, HashGrid) and device.type == "cuda" and fused_hash_grid.problem(device) is not None:
        scene.encode = partial(scene.encode, fused=False)  # type: ignore[method-assign]
    renderer.update_occupancy(scene, 0, rng)
    orientation = config.regularisers.orientation
    normals = max(orientation.first, orientation.last) > 0

    def step(size: int) -> int:
        cameras = sampler.around(1, 15.0, size)

        def forward() -> torch.Tensor:
            render = renderer(scene, cameras, rng, training=True, normals=normals)
            return render.rgb.sum() + (render.normal.sum() if render.normal is not None else 0)

        scene.zero_grad()
        both = peak_of(lambda: forward().backward())
        gradients = sum(p.grad.numel() * p.grad.element_size() for p in scene.parameters() if p.grad is not None)
        return max(peak_of(forward), both - gradients)

    small, large = step(_SMALL), step(_LARGE)
    slope = (large - small) / (_LARGE**2 - _SMALL**2)
    views = getattr(config.teacher, "joint_views", 1)
    pixels = config.guidance.renders * views * sampler.height * sampler.width
    render = max(0, round(small + slope * (pixels - _SMALL**2)))
    trained = sum(p.numel() * p.element_size() for p in scene.parameters())
    return SceneMemory(bytes_of(scene) + (1 + _MOMENTS) * trained, render)
