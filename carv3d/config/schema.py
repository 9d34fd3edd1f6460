"""Every key a config can have, with its default, unit and meaning. YAML files hold differences only.

Sections with a `type` have one dataclass a kind, and `type` picks it: `scene: {type: gaussians}`, or in short
`scene: gaussians`. The type may be a plug-in's `package.Name`. A `Ramp` may be written as one number, which then
holds for the whole run.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from carv3d.config.cameras import Cameras
from carv3d.config.kinds import section
from carv3d.config.ramp import Ramp, constant
from carv3d.config.renderers import Renderer
from carv3d.config.scenes import VoxelGrid
from carv3d.config.teachers import DiffusersTeacher

KINDS = {
    "teacher": "teacher",
    "scene": "scene",
    "cameras": "cameras",
    "renderer": "renderer",
    "guidance.objective": "objective",
}
"""Sections with a `type`, by their dotted key, and the kind of component that the registry has for them."""


@dataclass
class Views:
    """Which angles get which view words."""

    front: float = 45.0  # degrees around azimuth 0
    back: float = 45.0  # degrees around azimuth 180
    overhead: float = 60.0  # degrees of elevation above which a view is overhead
    perp_neg: bool = False  # Perp-Neg: mix neighbouring views' words, push away from others; twice the teacher calls


@dataclass
class Guidance:
    """The estimator (paper, Algorithm 1) and its weights. resamples=1 with proposal=uniform is plain SDS."""

    objective: Any = field(default_factory=lambda: section("objective", "sds")())
    renders: int = 1  # R, renders a step
    resamples: Any = 4  # K, (t, eps) draws a render; auto: chosen on the way from what noise and time are measured
    proposal: str = "importance"  # of timesteps; uniform: q(t) = p(t); importance: proportional to p(t) w(t)
    strata: Literal["none", "render", "global"] = "render"  # render: K strata a render; global: R*K a step
    noise: str = "antithetic"  # of the K resamples of a render: independent, antithetic, zero_sum
    weighting: Literal["sds", "uniform", "fantasia3d", "velocity"] = "sds"  # w_SDS(t); velocity: for flows
    scale: float = 3.0  # classifier-free guidance: uncond + scale (cond - uncond); 1 is the conditional model
    t_min: Ramp = field(default_factory=lambda: constant(0.02))  # smallest timestep, fraction of the schedule
    t_max: Ramp = field(default_factory=lambda: constant(0.98))  # largest timestep, fraction of the schedule
    chunk: int = 0  # most (render, resample) pairs in one teacher call; 0: all at once


@dataclass
class Regularisers:
    """Weights of the terms that are added to the distillation loss."""

    sparsity: Ramp = field(default_factory=Ramp)  # mean opacity
    opacity: Ramp = field(default_factory=Ramp)  # opacity (1 - opacity): pixels are full or empty
    orientation: Ramp = field(default_factory=Ramp)  # of fields: normals that face away from the camera
    total_variation: Ramp = field(default_factory=Ramp)  # of fields: squared differences of neighbouring values
    gaussian_opacity: Ramp = field(default_factory=Ramp)  # of Gaussians: mean opacity
    gaussian_scale: Ramp = field(default_factory=Ramp)  # of Gaussians: mean std, share of the bound
    gaussian_position: Ramp = field(default_factory=Ramp)  # of Gaussians: mean squared distance from the origin


@dataclass
class Optimizer:
    """Adam."""

    lr: Ramp = field(default_factory=lambda: constant(0.05))
    betas: list[float] = field(default_factory=lambda: [0.9, 0.99])
    eps: float = 1e-15


@dataclass
class Training:
    """Length and book-keeping of a run."""

    steps: int = 600
    preview_every: int = 100  # steps; 0: never
    opinion_every: int = 0  # steps; what the teacher says of a render, at several noise levels; 0: never
    checkpoint_every: int = 100  # steps; 0: only at the end
    keep_checkpoints: int = 2  # newest ones to keep


@dataclass
class Mesh:
    """What `generate` exports at the end, and the defaults of `export`."""

    formats: list[str] = field(default_factory=lambda: ["glb", "obj", "ply"])  # and splat of Gaussians; []: none
    resolution: int = 128  # cells along a side of the isosurface grid
    threshold: float = 0.15  # share of the light absorbed where the surface is, 0 to 1; lower is fatter
    faces: int = 10000  # most triangles after simplification; 0: no simplification
    texture: Literal["uv", "vertex"] = "uv"  # a baked picture, or vertex colours
    texture_size: int = 512  # pixels along a side of the baked picture


@dataclass
class Turntable:
    """The video and the contact sheet at the end of a run."""

    frames: int = 60
    fps: int = 20
    size: int = 256  # pixels
    elevation: float = 15.0  # degrees
    sheet: int = 160  # pixels along a side of each picture on the contact sheet


@dataclass
class Config:
    """One run."""

    prompt: str = ""
    prompt_library: str = "prompts/library.txt"  # a file, one prompt a line; prompt=lib:fox is the one with that word
    negative_prompt: str = ""
    seed: int = 0
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    threads: int = 0  # torch threads on the CPU; 0: as many as there are cores to run on
    output_dir: str = "outputs"  # runs go to <output_dir>/<config name>/<prompt>-<n>
    force: bool = False  # go on with a prompt that the built-in teacher does not know
    teacher: Any = field(default_factory=DiffusersTeacher)
    scene: Any = field(default_factory=VoxelGrid)
    cameras: Any = field(default_factory=Cameras)
    views: Views = field(default_factory=Views)
    renderer: Any = field(default_factory=Renderer)
    guidance: Guidance = field(default_factory=Guidance)
    regularisers: Regularisers = field(default_factory=Regularisers)
    optimizer: Optimizer = field(default_factory=Optimizer)
    training: Training = field(default_factory=Training)
    mesh: Mesh = field(default_factory=Mesh)
    turntable: Turntable = field(default_factory=Turntable)
