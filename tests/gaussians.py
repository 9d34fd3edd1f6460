"""Gaussian scenes, views of them and short runs, for the tests."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from plyfile import PlyData
from torch import Tensor

from carv3d.cameras import Cameras
from carv3d.config import Config
from carv3d.generation.config import MeshConfig, TrainingConfig, TurntableConfig
from carv3d.renderers import Render, SplatRenderer
from carv3d.renderers.config import RendererConfig
from carv3d.scenes import Gaussians
from carv3d.scenes.config import DensificationConfig, GaussiansConfig
from carv3d.scenes.splat_file import WORLD_TO_FILE
from carv3d.teachers.config import ExactTeacherConfig


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cloud(count: int = 40, degree: int = 0, seed: int = 0, spread: float = 0.12) -> Gaussians:
    """Gaussians of all sizes, directions, opacities and colours, in float64."""
    scene, rng = Gaussians(GaussiansConfig(count=count, degree=degree), seeded(seed)).double(), seeded(seed + 1)
    with torch.no_grad():
        for parameter in scene.parameters():
            parameter.normal_(generator=rng)
        scene.positions.mul_(0.4)
        scene.log_scales.mul_(0.4).add_(math.log(spread))
        scene.colours.mul_(0.3)
        if degree:
            scene.harmonics.mul_(0.1)
    return scene


def cameras(count: int = 2, size: int = 12) -> Cameras:
    azimuth, elevation = torch.linspace(-20, 100, count), torch.linspace(5, 40, count)
    found = Cameras.look_at_origin(azimuth, elevation, height=size, width=size + 3)
    return replace(found, c2w=found.c2w.double(), intrinsics=found.intrinsics.double())


def look(scene: Gaussians, views: Cameras, **options: bool) -> Render:
    found: Render = SplatRenderer(RendererConfig())(scene, views, training=False, **options)
    return found


def small(**scene: object) -> Config:
    """A run of some seconds that densifies twice before half of it."""
    config = Config(prompt="a red cone", seed=3, threads=1)
    config.teacher = ExactTeacherConfig(views=20, neighbours=4)
    densify = DensificationConfig(every=3, begin=0.0, end=0.6, gradient=1.2)
    config.scene = GaussiansConfig(count=150, spread=0.7, densify=densify, **scene)  # type: ignore[arg-type]
    config.cameras.height = config.cameras.width = 32
    config.guidance.renders = 2
    config.training = TrainingConfig(steps=12, preview_every=0, checkpoint_every=8, keep_checkpoints=2)
    config.turntable = TurntableConfig(frames=2, size=32)
    config.mesh = MeshConfig(formats=[])
    return config


def in_splat_axes(views: Cameras) -> Cameras:
    """Cameras that see a splat file's Gaussians as `views` see the scene."""
    turn = torch.eye(4).to(views.c2w)
    turn[:3, :3] = WORLD_TO_FILE
    return replace(views, c2w=turn @ views.c2w)


def read_splats(path: Path) -> Gaussians:
    """What a splat file says, in the file's axes, by the reader that splat trainers use (plyfile), which knows nothing
    of ours."""
    columns = PlyData.read(path)["vertex"]

    def take(*names: str) -> Tensor:
        return torch.from_numpy(np.stack([columns[name] for name in names], -1))

    n = columns.count
    state = {
        "positions": take("x", "y", "z"),
        "colours": take("f_dc_0", "f_dc_1", "f_dc_2"),
        "opacity_logits": take("opacity")[:, 0],
        "log_scales": take("scale_0", "scale_1", "scale_2"),
        "rotations": take("rot_0", "rot_1", "rot_2", "rot_3"),
        # Red's coefficients first, then green's, then blue's.
        "harmonics": take(*[f"f_rest_{i}" for i in range(45)]).view(n, 3, 15).mT,
        "gradient_sum": torch.zeros(n),
        "times_seen": torch.zeros(n),
    }
    scene = Gaussians(GaussiansConfig(count=1, degree=3), seeded())
    scene.load_state_dict(state)
    return scene
