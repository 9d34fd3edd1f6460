"""The config of `carv3d generate`, and of all verbs that work with its runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from carv3d import registry
from carv3d.config.common import CommonConfig
from carv3d.config.components import ComponentConfig, component
from carv3d.config.keys import Betas, Component, Interval, Key, Seed, Strata, Weighting, fields_of
from carv3d.config.linear_schedule import LinearSchedule, constant
from carv3d.config.values import Rule
from carv3d.errors import UserError
from carv3d.prompts.config import ViewsConfig
from carv3d.scenes.config import FieldConfig


@dataclass
class GuidanceConfig:
    """The estimator (paper, Algorithm 1) and its weights. resamples=1 with proposal=uniform is plain SDS."""

    objective: Annotated[ComponentConfig, Component("objective")] = component("objective", "sds")
    renders: Annotated[int, Key("R, renders a step", ge=1, le=4_096)] = 1
    resamples: Annotated[
        int | Literal["auto"],
        Key(
            "K, (t, eps) draws a render; auto: chosen during the run from measured noise and time",
            ge=1,
            le=4_096,
            allowed="a whole number from 1 to 4096, or auto",
        ),
    ] = 4
    proposal: Annotated[
        str, Key("of timesteps; uniform: q(t) = p(t); importance: proportional to p(t) w(t); or package.name")
    ] = "importance"
    strata: Annotated[Strata, Key("of timesteps; render: K strata a render; global: R*K a step")] = "render"
    coupling: Annotated[
        str,
        Key(
            "of the K noises of a render: independent, antithetic, zero_sum, or package.name",
            formerly="noise",
        ),
    ] = "antithetic"
    weighting: Annotated[Weighting, Key("w(t); sds: sigma_t^2; velocity: for flows")] = "sds"
    scale: Annotated[
        float, Key("of classifier-free guidance: uncond + scale (cond - uncond); 1 is the conditional model", ge=0)
    ] = 3.0
    t_min: Annotated[LinearSchedule, Key("smallest timestep, fraction of the schedule", ge=0, le=1)] = constant(0.02)
    t_max: Annotated[LinearSchedule, Key("largest timestep, fraction of the schedule", ge=0, le=1)] = constant(0.98)
    chunk: Annotated[
        int, Key("most (render, resample) pairs in one teacher call; 0: all at once", ge=0, le=1_000_000)
    ] = 0

    def rules(self, prefix: str) -> Iterator[Rule]:
        """Names are known, and some timestep is left at every moment."""
        for key, kind in (("proposal", "proposal"), ("coupling", "coupling")):
            name = getattr(self, key)
            yield (f"{prefix}.{key}", name, *registry.is_function(kind, name))
        # Both schedules are linear between their ends, so that it suffices to compare them there.
        ends = {self.t_min.begin, self.t_min.end, self.t_max.begin, self.t_max.end}
        moments = [end + side for end in ends for side in (-1e-9, 1e-9)]
        allowed = all(self.t_min.at(moment) < self.t_max.at(moment) for moment in moments)
        yield f"{prefix}.t_min", self.t_min, allowed, f"less than {prefix}.t_max ({self.t_max}) during the whole run"


NONE = constant(0.0)


@dataclass
class RegulariserConfig:
    """Weights of the terms that are added to the distillation loss."""

    sparsity: Annotated[LinearSchedule, Key("mean opacity", ge=0)] = NONE
    opacity: Annotated[LinearSchedule, Key("opacity (1 - opacity): pixels become full or empty", ge=0)] = NONE
    orientation: Annotated[LinearSchedule, Key("of fields: normals that face away from the camera", ge=0)] = NONE
    total_variation: Annotated[LinearSchedule, Key("of fields: squared differences of neighbouring values", ge=0)] = (
        NONE
    )
    gaussian_opacity: Annotated[LinearSchedule, Key("of Gaussians: mean opacity", ge=0)] = NONE
    gaussian_scale: Annotated[LinearSchedule, Key("of Gaussians: mean std, share of the bound", ge=0)] = NONE
    gaussian_position: Annotated[
        LinearSchedule, Key("of Gaussians: mean squared distance from the origin, in units of the bound", ge=0)
    ] = NONE


@dataclass
class OptimizerConfig:
    """Adam."""

    lr: Annotated[LinearSchedule, Key("learning rate", ge=0)] = constant(0.05)
    betas: Betas = field(default_factory=lambda: [0.9, 0.99])
    eps: Annotated[float, Key("added to the root of the second moment", gt=0)] = 1e-15

    def rules(self, prefix: str) -> Iterator[Rule]:
        """Something is learned."""
        yield f"{prefix}.lr", self.lr, self.lr.highest > 0, "greater than 0"


@dataclass
class TrainingConfig:
    """Length of a run, and what it writes on the way."""

    steps: Annotated[int, Key("of the optimiser", ge=1, le=100_000_000)] = 600
    preview_every: Interval = 100
    denoising_preview_every: Annotated[
        int,
        Key(
            "steps between two pictures of the teacher's denoised renders; 0: never",
            ge=0,
            le=100_000_000,
            formerly="opinion_every",
        ),
    ] = 0
    checkpoint_every: Annotated[int, Key("steps between two; 0: only at the end", ge=0, le=100_000_000)] = 100
    keep_checkpoints: Annotated[int, Key("how many of the newest are kept", ge=1, le=1_000_000)] = 2


@dataclass
class MeshConfig:
    """What `generate` exports at the end, and the defaults of `export`."""

    formats: Annotated[
        Literal["auto"] | list[str],
        Key(
            "auto: all that the scene has; or some of glb, obj, ply, and splat of Gaussians; []: none",
            allowed="auto, or a list of formats",
        ),
    ] = "auto"
    resolution: Annotated[int, Key("cells along a side of the isosurface grid", ge=2, le=1_024)] = 128
    threshold: Annotated[
        float,
        Key(
            "share of the light that is absorbed at the surface; lower is fatter",
            gt=0,
            lt=1,
            allowed="a share of the light, above 0 and below 1",
        ),
    ] = 0.15
    faces: Annotated[int, Key("most triangles after simplification; 0: no simplification", ge=0, le=100_000_000)] = (
        10000
    )
    texture: Annotated[Literal["uv", "vertex"], Key("uv: a baked picture; vertex: vertex colours")] = "uv"
    texture_size: Annotated[int, Key("pixels along a side of the baked picture", ge=1, le=16_384)] = 512


@dataclass
class TurntableConfig:
    """The video and the contact sheet at the end of a run."""

    frames: Annotated[int, Key("of one turn", ge=1, le=10_000)] = 60
    fps: Annotated[int, Key("frames a second", ge=1, le=240)] = 20
    size: Annotated[int, Key("pixels along a side of a frame", ge=16, le=4_096)] = 256
    elevation: Annotated[float, Key("of the camera, degrees", gt=-90, lt=90, allowed="degrees between -90 and 90")] = (
        15.0
    )
    sheet: Annotated[int, Key("pixels along a side of each picture on the contact sheet", ge=16, le=4_096)] = 160


@dataclass
class Config(CommonConfig):
    """Every key of `carv3d generate`, with its default, meaning and range. YAML files hold differences only.

    A section with a `type` has the keys of that component: `scene: {type: gaussians}`, or in short `scene: gaussians`.
    The type may be a plug-in's `package.Name`. A value that changes in the course of the run may be written as one
    number, or as a mapping of first, last, begin and end.
    """

    prompt: Annotated[str, Key("what to make")] = ""
    prompt_library: Annotated[str, Key("a file, one prompt a line; prompt=lib:fox is the one with that word")] = (
        "prompts/library.txt"
    )
    negative_prompt: Annotated[str, Key("what the unconditional prediction is given")] = ""
    seed: Seed = 0
    scene: Annotated[ComponentConfig, Component("scene")] = component("scene", "voxel_grid")
    cameras: Annotated[ComponentConfig, Component("cameras")] = component("cameras", "uniform")
    views: ViewsConfig = field(default_factory=ViewsConfig)
    renderer: Annotated[ComponentConfig, Component("renderer")] = component("renderer", "auto")
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    regularisers: RegulariserConfig = field(default_factory=RegulariserConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    turntable: TurntableConfig = field(default_factory=TurntableConfig)

    def rules(self, prefix: str) -> Iterator[Rule]:
        """The sections fit each other."""
        scene = self.scene
        drawn_by = getattr(scene, "renderer", "volume")
        if (backend := getattr(self.renderer, "backend", None)) is not None:
            known = ["auto", "torch", *{"splat": ["gsplat", "numba"], "volume": ["nerfacc", "numba"]}.get(drawn_by, [])]
            names = f"{', '.join(known[:-1])} or {known[-1]}"
            yield "renderer.backend", backend, backend in known, f"{names} with scene.type={scene.type}"
        terms = getattr(scene, "penalties", FieldConfig.penalties if drawn_by == "volume" else ())
        for key in fields_of(RegulariserConfig):
            weight = getattr(self.regularisers, key)
            fits = weight.highest == 0 or key in ("sparsity", "opacity", *terms)
            yield f"regularisers.{key}", weight, fits, f"0 (scene.type={scene.type} has no such term)"
        formats = getattr(scene, "mesh_formats", FieldConfig.mesh_formats)
        others = "" if "splat" in formats else " (splat is of scene.type=gaussians)"
        what = f"a list of some of {', '.join(formats)}{others}" if formats else "[]: the scene has no export format"
        asked = self.mesh.formats
        yield "mesh.formats", asked, asked == "auto" or set(asked) <= {*formats}, f"auto, or {what}"

    @property
    def export(self) -> MeshConfig:
        """The section `mesh` with the formats of this config's scene in place of auto."""
        if self.mesh.formats != "auto":
            return self.mesh
        return replace(self.mesh, formats=list(getattr(self.scene, "mesh_formats", FieldConfig.mesh_formats)))


def require_prompt(config: Config) -> str:
    """The prompt.

    Raises:
        UserError: it is empty, or no text.
    """
    if not config.prompt.strip():
        raise UserError('no prompt: say what to make, for instance prompt="a red chair"')
    if any(letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in config.prompt):
        raise UserError(f"the prompt {config.prompt!r} has bytes that are no text in UTF-8: type it again")
    return config.prompt
