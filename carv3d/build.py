"""From a config's sections to the things they describe."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

import torch

from carv3d.allocation import START
from carv3d.arithmetic import network_dtype
from carv3d.cameras import CameraSampler
from carv3d.config import schema
from carv3d.errors import UserError
from carv3d.loss import Carv
from carv3d.prompts import ViewPrompts
from carv3d.renderers import Renderer, SplatRenderer, VolumeRenderer
from carv3d.scenes import Densification, Gaussians, HashGrid, Scene, VoxelGrid
from carv3d.teachers import DiffusersTeacher, ExactTeacher, Teacher


def _fields(section: Any) -> dict[str, Any]:
    return {f.name: getattr(section, f.name) for f in fields(section) if f.name != "type"}


def device(config: schema.Config) -> torch.device:
    """The device that the config asks for.

    Raises:
        UserError: CUDA asked for and absent, or no such device.
    """
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(config.device)
    except RuntimeError:
        raise UserError(f"device={config.device!r} is not a device: use auto, cpu, cuda or cuda:N") from None
    if found.type == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda, but torch sees no CUDA device here: use device=cpu, or see `carv3d doctor`")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device={config.device}, but there are only {torch.cuda.device_count()} CUDA devices")
    return found


def teacher(config: schema.Config, device: torch.device) -> Teacher:
    """The frozen model that the run learns from."""
    section = config.teacher
    if isinstance(section, schema.ExactTeacher):
        return ExactTeacher(**_fields(section), device=device)
    return diffusers_teacher(config, device)


def diffusers_teacher(config: schema.Config, device: torch.device) -> DiffusersTeacher:
    """The same, where the config is known to have a pipeline."""
    arguments = _fields(config.teacher) | {"dtype": network_dtype(getattr(torch, config.teacher.dtype), device)}
    return DiffusersTeacher(**arguments, views=ViewPrompts(**asdict(config.views)), force=config.force, device=device)


def scene(config: schema.Config, rng: torch.Generator, *, fresh: bool = True) -> Scene:
    """A freshly initialised scene, on the generator's device.

    Args:
        config: what it is.
        rng: draws its start.
        fresh: False if a checkpoint's scene will be loaded into it: then no file that a run starts from is read.

    Raises:
        UserError: the point cloud to start from will not do.
    """
    if isinstance(config.scene, schema.Gaussians):
        arguments = _fields(config.scene) | {"densify": Densification(**asdict(config.scene.densify))}
        if not fresh:
            arguments |= {"points": "", "count": 1}
        return Gaussians(**arguments, generator=rng)
    kind = HashGrid if isinstance(config.scene, schema.HashGrid) else VoxelGrid
    return kind(**_fields(config.scene), generator=rng).to(rng.device)


def renderer(config: schema.Config, device: torch.device) -> Renderer[Any]:
    """The renderer of the config's kind of scene; a volume renderer's occupancy is not yet looked at.

    Raises:
        UserError: the config asks for a backend that does not work here.
    """
    arguments = asdict(config.renderer)
    if isinstance(arguments["background"], list):
        arguments["background"] = tuple(arguments["background"])
    if isinstance(config.scene, schema.Gaussians):
        shared = {key: arguments[key] for key in ("background", "backend")}
        return SplatRenderer(**shared, device=device).to(device)
    return VolumeRenderer(**arguments, device=device).to(device)


def camera_sampler(config: schema.Config) -> CameraSampler:
    """Where training renders are taken from."""
    section = config.cameras
    azimuth, elevation, distance, fov = (
        (low, high) for low, high in (section.azimuth, section.elevation, section.distance, section.fov)
    )
    return CameraSampler(azimuth, elevation, distance, fov, section.height, section.width)


def carv(config: schema.Config, teacher: Teacher) -> Carv:
    """The estimator's loss."""
    section = config.guidance
    return Carv(
        teacher,
        resamples=START if section.resamples == "auto" else section.resamples,
        proposal=section.proposal,
        strata=section.strata,
        noise=section.noise,
        weighting=section.weighting,
        scale=section.scale,
        t_range=(section.t_min.first, section.t_max.first),
        chunk=section.chunk,
    )
