"""Building the components of a config. Each section builds its own component."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from carv3d.cameras import Sampler
from carv3d.config.common import CommonConfig
from carv3d.config.components import Context
from carv3d.distillation.config import DistillConfig
from carv3d.errors import UserError
from carv3d.generation.config import Config, GuidanceConfig
from carv3d.guidance import Unguided, guidance_of
from carv3d.loss import Carv
from carv3d.renderers import Renderer
from carv3d.scenes import Scene
from carv3d.teachers import Teacher


def device(config: CommonConfig) -> torch.device:
    """The device that the config asks for; see `device_named`."""
    return device_named(config.device)


def device_named(name: str) -> torch.device:
    """The device of a name; "auto" is CUDA where it is there.

    Raises:
        UserError: CUDA asked for and absent, or no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(name)
    except RuntimeError:
        raise UserError(f"device={name!r} is not a device: use auto, cpu, cuda or cuda:N") from None
    if found.type == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda, but torch sees no CUDA device here: use device=cpu, or see `carv3d doctor`")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device={name}, but there are only {torch.cuda.device_count()} CUDA devices")
    return found


def teacher(config: CommonConfig, device: torch.device) -> Teacher:
    """The teacher."""
    found: Teacher = config.teacher.build(_context(config, device))
    wanted = ("schedule", "branches", "predict", "encode", "decode", "condition", "image_size")
    if missing := [name for name in wanted if not hasattr(found, name)]:
        raise UserError(f"teacher.type={config.teacher.type} makes no teacher: it has no {', '.join(missing)}")
    return found


def scene(config: Config, rng: torch.Generator, *, fresh: bool = True) -> Scene:
    """The scene at its start, on the generator's device.

    Args:
        config: of the run.
        rng: generator of the start.
        fresh: False if a checkpoint will be loaded into the scene; then it reads no file to start from.

    Raises:
        UserError: the point cloud to start from cannot be used.
    """
    found: Scene = _of_kind("scene", config.scene, Scene, Context(config, rng.device, rng, fresh))
    return found


def renderer(config: Config, device: torch.device) -> Renderer[Any]:
    """The renderer of the config's scene; a volume renderer's occupancy is not yet refreshed.

    Raises:
        UserError: the config asks for a backend that does not work here.
    """
    found: Renderer[Any] = _of_kind("renderer", config.renderer, Renderer, _context(config, device))
    return found


def camera_sampler(config: Config | DistillConfig) -> Sampler:
    """Where training renders are taken from."""
    found: Sampler = _of_kind("cameras", config.cameras, Sampler, _context(config, torch.device("cpu")))
    return found


def carv(config: Config, teacher: Teacher) -> Carv:
    """The estimator's loss.

    Raises:
        UserError: the objective cannot use the teacher.
    """
    section = config.guidance
    objective: Any = section.objective
    perp_neg = config.views.perp_neg and getattr(config.teacher, "view_words", False)
    guidance = guidance_of(section.scale, perp_neg=perp_neg)
    return Carv(
        teacher,
        objective=replace(objective),  # a copy, so that the config has no networks
        guidance=guidance if "uncond" in teacher.branches else Unguided(),
        resamples=GuidanceConfig.resamples if section.resamples == "auto" else section.resamples,  # type: ignore[arg-type]
        proposal=section.proposal,
        strata=section.strata,
        coupling=section.coupling,
        weighting=section.weighting,
        t_range=(section.t_min.first, section.t_max.first),
        chunk=section.chunk,
        seed=config.seed,
    )


def check(config: Config, teacher: Teacher, rng: torch.Generator) -> None:
    """Build all that a run needs besides its teacher, render one small picture, and encode the prompt.

    Raises:
        UserError: something that cannot be built or read, or parts that do not fit each other.
    """
    carv(config, teacher)
    made, drawn, sampler = scene(config, rng), renderer(config, rng.device), camera_sampler(config)
    cameras = sampler.around(1, 15.0, 8).to(rng.device)
    with torch.no_grad():  # of a pipeline this reads the tokenizer and the text encoders
        teacher.condition(config.prompt, cameras, config.negative_prompt)
    try:
        with torch.no_grad():
            drawn(made, cameras, training=False)
    except UserError:
        raise
    except Exception as error:  # a plug-in can raise any error
        said = " ".join(str(error).split())[:160]
        raise UserError(
            f"renderer.type={config.renderer.type} cannot draw scene.type={config.scene.type} from the cameras of "
            f"cameras.type={config.cameras.type} ({type(error).__name__}: {said})"
        ) from error


def _of_kind(kind: str, section: Any, wanted: Any, context: Context) -> Any:
    found = section.build(context)
    if not isinstance(found, wanted):
        name = f"{wanted.__module__}.{wanted.__name__}"
        raise UserError(f"{kind}.type={section.type} makes a {type(found).__name__}, and not a {name}")
    return found


def _context(config: CommonConfig, device: torch.device) -> Context:
    return Context(config, device, torch.Generator(device).manual_seed(getattr(config, "seed", 0)))
