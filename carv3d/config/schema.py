"""Every key a config can have, with its default, unit and meaning. YAML files hold differences only.

Sections whose `type` names a kind (`scene`, `teacher`) have one dataclass a kind; `type` picks it. A `Ramp`
may be written as one number, which then holds for the whole run.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass
class Ramp:
    """A value that moves linearly over a part of the run."""

    first: float = 0.0  # value up to `begin`
    last: float = 0.0  # value from `end` on
    begin: float = 0.0  # fraction of the run, 0 to 1
    end: float = 1.0  # fraction of the run, 0 to 1

    def at(self, progress: float) -> float:
        """The value at a fraction of the run, 0 to 1. With begin = end it jumps there."""
        if progress >= self.end:
            return self.last
        if progress <= self.begin:
            return self.first
        return self.first + (self.last - self.first) * (progress - self.begin) / (self.end - self.begin)


def constant(value: float) -> Ramp:
    """The same value for the whole run."""
    return Ramp(value, value)


@dataclass
class DiffusersTeacher:
    """A diffusers pipeline: Stable Diffusion 1, 2, XL, 3, DeepFloyd IF."""

    type: Literal["diffusers"] = "diffusers"
    path: str = "builtin"  # a pipeline folder, a .safetensors file, a hub id, or "builtin" for the one in carv3d
    revision: str = ""  # of a hub id: a branch, tag or commit
    mirrors: list[str] = field(default_factory=list)  # tried in order where path does not exist
    allow_pickle: bool = False  # take pickled .bin weights, which can run any code
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"  # of the frozen networks
    posterior: Literal["mode", "sample"] = "mode"  # which latent of the encoder's posterior is used
    camera: Literal["auto", "vector", "none"] = "auto"  # vector: tell the network the camera; auto: if it can
    view_words: bool = True  # append ", front view" and the like to the prompt
    image_size: int = 0  # pixels, renders are resized to it before encoding; 0: as the teacher was trained
    cache_text: bool = True  # keep what prompts are encoded to, so that text encoders are not loaded again
    channels_last: bool = False  # lay out the denoiser's convolutions so; may be quicker on a GPU in half precision
    compile: bool = False  # the denoiser by torch.compile: minutes at the start, quicker steps
    lean: bool = False  # attention and pictures in slices: slower, for small cards


@dataclass
class ExactTeacher:
    """The closed-form denoiser of one object's own pictures. It knows the answer: for tests and checks."""

    type: Literal["exact"] = "exact"
    views: int = 400  # reference pictures of the object
    neighbours: int = 24  # how many of them, nearest to the camera, make up the posterior
    concentration: float = 60.0  # how fast a picture's prior weight falls with its angle to the camera


@dataclass
class VoxelGrid:
    """A dense grid of density and colour."""

    type: Literal["voxel_grid"] = "voxel_grid"
    bound: float = 1.0  # half side of the cube that holds the object, world units
    resolution: int = 48  # grid points along a side
    density_scale: float = 6.0  # density per unit of softplus(parameter), per world unit
    blob_density: float = 5.0  # height of the initial blob, in parameter units
    blob_std: float = 0.5  # its radius, world units


@dataclass
class HashGrid:
    """A multiresolution hash grid with a small MLP (Instant-NGP)."""

    type: Literal["hash_grid"] = "hash_grid"
    bound: float = 1.0  # half side of the cube that holds the object, world units
    levels: int = 16
    features: int = 2  # per level
    log2_table: int = 19  # log2 of the entries per level
    base_resolution: int = 16  # cells along a side at the coarsest level
    finest_resolution: int = 2048  # cells along a side at the finest level
    hidden: int = 64  # width of the MLP
    layers: int = 1  # hidden layers of the MLP
    blob_density: float = 10.0  # height of the initial blob, in pre-activation units
    blob_std: float = 0.5  # its radius, world units


@dataclass
class Densification:
    """When Gaussians are added and removed, and which."""

    every: int = 50  # steps between two times; 0: never
    begin: float = 0.1  # part of the run in which it happens, fractions
    end: float = 0.7
    gradient: float = 2.0  # densified: mean gradient on the image above this many times the mean of all Gaussians
    split_scale: float = 0.05  # above this size they are split, else cloned; largest std, share of the bound
    most: int = 10000  # Gaussians there may be
    prune_opacity: float = 0.02  # fainter ones are removed
    prune_scale: float = 0.5  # larger ones are removed; largest std, share of the bound
    reset_every: int = 0  # steps between two resets of the opacities to twice prune_opacity; 0: never


@dataclass
class Gaussians:
    """A cloud of 3-D Gaussians (splats)."""

    type: Literal["gaussians"] = "gaussians"
    bound: float = 1.0  # half side of the cube that holds the object, world units
    points: str = ""  # a .ply point cloud to start from; "": points of a ball
    count: int = 2000  # points of the ball
    radius: float = 0.5  # its radius, world units
    spread: float = 1.0  # initial std, share of the distance to the nearest points
    opacity: float = 0.1  # initial
    degree: int = 0  # of the spherical harmonics, 0 to 3: how colour depends on the direction
    lr_position: Ramp = field(default_factory=lambda: constant(0.1))  # shares of optimizer.lr
    lr_scale: Ramp = field(default_factory=lambda: constant(0.15))  # of the logarithms of the stds
    lr_rotation: Ramp = field(default_factory=lambda: constant(0.15))  # of the quaternions
    lr_opacity: Ramp = field(default_factory=lambda: constant(1.0))  # of the logits
    lr_colour: Ramp = field(default_factory=lambda: constant(1.0))  # of colours; 1/20 of it for harmonics
    densify: Densification = field(default_factory=Densification)


@dataclass
class Cameras:
    """Where training renders are taken from; each pair is (low, high), each value in it as likely."""

    order: Literal["independent", "sequence"] = "sequence"  # sequence: angles that fill their ranges evenly

    azimuth: list[float] = field(default_factory=lambda: [-180.0, 180.0])  # degrees, 0 sees the front
    elevation: list[float] = field(default_factory=lambda: [-10.0, 80.0])  # degrees above the horizon
    distance: list[float] = field(default_factory=lambda: [3.0, 3.0])  # world units
    fov: list[float] = field(default_factory=lambda: [40.0, 40.0])  # degrees, vertical
    height: int = 64  # pixels
    width: int = 64  # pixels


@dataclass
class Views:
    """Which angles get which view words."""

    front: float = 45.0  # degrees around azimuth 0
    back: float = 45.0  # degrees around azimuth 180
    overhead: float = 60.0  # degrees of elevation above which a view is overhead
    perp_neg: bool = False  # Perp-Neg: mix neighbouring views' words, push away from others; twice the teacher calls


@dataclass
class Renderer:
    """How a scene becomes an image."""

    background: Any = "white"  # white | random | learned | [r, g, b] in 0..1
    backend: Literal["auto", "torch", "gsplat", "nerfacc"] = "auto"  # auto: on CUDA gsplat or nerfacc if it works
    samples: int = 64  # of fields: along a ray
    occupancy_resolution: int = 32  # of fields: cells along a side of the mask that skips empty space; 0: no mask
    occupancy_every: int = 16  # steps between its refreshes
    occupancy_threshold: float = 0.1  # most opacity that a ray may lose to what the mask skips; 0: nothing


@dataclass
class Guidance:
    """The estimator (paper, Algorithm 1) and its weights. resamples=1 with proposal=uniform is plain SDS."""

    renders: int = 1  # R, renders a step
    resamples: Any = 4  # K, (t, eps) draws a render; auto: chosen on the way from what noise and time are measured
    proposal: Literal["uniform", "importance"] = "importance"  # importance: q(t) proportional to p(t) w(t)
    strata: Literal["none", "render", "global"] = "render"  # render: K strata a render; global: R*K a step
    noise: Literal["independent", "antithetic", "zero_sum"] = "antithetic"  # of the K resamples of a render
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
    cameras: Cameras = field(default_factory=Cameras)
    views: Views = field(default_factory=Views)
    renderer: Renderer = field(default_factory=Renderer)
    guidance: Guidance = field(default_factory=Guidance)
    regularisers: Regularisers = field(default_factory=Regularisers)
    optimizer: Optimizer = field(default_factory=Optimizer)
    training: Training = field(default_factory=Training)
    mesh: Mesh = field(default_factory=Mesh)
    turntable: Turntable = field(default_factory=Turntable)


# The kinds that a section's `type` can name.
KINDS: dict[str, dict[str, type]] = {
    "teacher": {"diffusers": DiffusersTeacher, "exact": ExactTeacher},
    "scene": {"voxel_grid": VoxelGrid, "hash_grid": HashGrid, "gaussians": Gaussians},
}
