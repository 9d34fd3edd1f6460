"""Values that have the right type and still make no run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from carv3d.config import schema
from carv3d.config.rules import Rule, at_least, check, finite, positive, shown
from carv3d.errors import UserError

MESH_FORMATS = ("glb", "obj", "ply")
"""Of meshes, in `mesh.formats`; `carv3d.mesh.FORMATS` without importing what that needs."""

SPLAT_FORMAT = "splat"
"""Of Gaussians, in `mesh.formats`."""


def validate(config: Any) -> None:
    """Check every value's range; a config of another pipeline than text to 3-D brings its own `rules`.

    Raises:
        UserError: one line that names the first key out of range, its value and what is allowed.
    """
    check(config.rules() if hasattr(config, "rules") else rules(config))


def require_prompt(config: schema.Config) -> str:
    """The prompt.

    Raises:
        UserError: it is empty.
    """
    if not config.prompt.strip():
        raise UserError('no prompt: say what to make, for instance prompt="a red chair"')
    return config.prompt


def rules(config: schema.Config) -> Iterator[Rule]:
    """Of text to 3-D."""
    yield from finite(config, "")
    yield from _top(config)
    yield from _scene(config.scene)
    yield from _teacher(config.teacher)
    yield from _cameras(config)
    yield from _renderer(config)
    yield from _guidance(config.guidance)
    yield from _training(config)
    yield from _outputs(config)


def _top(config: schema.Config) -> Iterator[Rule]:
    yield "seed", config.seed, 0 <= config.seed < 2**63, "from 0 to 2^63 - 1"
    device = re.fullmatch(r"auto|cpu|cuda(:\d+)?", config.device)
    yield "device", config.device, device is not None, "auto, cpu, cuda or cuda:N"
    yield "threads", config.threads, config.threads >= 0, "at least 0"
    yield "output_dir", config.output_dir, bool(config.output_dir.strip()), "a folder"


def _scene(scene: Any) -> Iterator[Rule]:
    yield from positive(scene, "scene", "bound")
    if isinstance(scene, schema.Gaussians):
        yield from _gaussians(scene)
        return
    yield from positive(scene, "scene", "blob_std")
    yield from at_least(scene, "scene", blob_density=0)
    if isinstance(scene, schema.VoxelGrid):
        yield from at_least(scene, "scene", resolution=2)
        yield from positive(scene, "scene", "density_scale")
    if isinstance(scene, schema.HashGrid):
        yield from at_least(scene, "scene", levels=1, features=1, base_resolution=1, hidden=1, layers=1)
        yield from at_least(scene, "scene", finest_resolution=scene.base_resolution)
        yield "scene.log2_table", scene.log2_table, 1 <= scene.log2_table <= 28, "from 1 to 28"


def _gaussians(scene: schema.Gaussians) -> Iterator[Rule]:
    rule = scene.densify
    yield from at_least(scene, "scene", count=1)
    yield from positive(scene, "scene", "radius", "spread")
    yield "scene.radius", scene.radius, scene.radius <= scene.bound, f"at most scene.bound ({scene.bound:g})"
    yield "scene.opacity", scene.opacity, 0 < scene.opacity < 1, "between 0 and 1"
    yield "scene.degree", scene.degree, 0 <= scene.degree <= 3, "from 0 to 3"
    for key in (f.name for f in fields(scene) if f.name.startswith("lr_")):
        share = getattr(scene, key)
        yield f"scene.{key}", share, min(share.first, share.last) >= 0, "at least 0"
    yield from at_least(rule, "scene.densify", every=0, gradient=0, most=1, reset_every=0)
    yield from positive(rule, "scene.densify", "split_scale", "prune_scale")
    inside = 0 <= rule.begin <= rule.end <= 1
    yield "scene.densify.begin and .end", [rule.begin, rule.end], inside, "in order and from 0 to 1"
    # A reset goes to twice the threshold, and that must be an opacity.
    yield "scene.densify.prune_opacity", rule.prune_opacity, 0 <= rule.prune_opacity < 0.5, "from 0 up to 1/2"


def _teacher(teacher: Any) -> Iterator[Rule]:
    if isinstance(teacher, schema.DiffusersTeacher):
        path = teacher.path
        yield "teacher.path", path, bool(path.strip()), 'a pipeline folder, a hub id or "builtin"'
        yield from at_least(teacher, "teacher", image_size=0)
    if isinstance(teacher, schema.ExactTeacher):
        yield from at_least(teacher, "teacher", views=1, neighbours=1, concentration=0)


def _cameras(config: schema.Config) -> Iterator[Rule]:
    cameras, views = config.cameras, config.views
    ranges = {
        "azimuth": (lambda low, high: high - low <= 360, "[low, high] degrees, at most 360 apart"),
        "elevation": (lambda low, high: low > -90 and high < 90, "[low, high] degrees between -90 and 90"),
        "distance": (lambda low, high: low > 0, "[low, high] world units greater than 0"),
        "fov": (lambda low, high: low > 0 and high < 180, "[low, high] degrees between 0 and 180"),
    }
    for key, (inside, what) in ranges.items():
        value = getattr(cameras, key)
        allowed = len(value) == 2 and value[0] <= value[1] and inside(*value)
        yield f"cameras.{key}", value, allowed, what
    yield from at_least(cameras, "cameras", height=1, width=1)
    for key in ("front", "back"):
        yield f"views.{key}", getattr(views, key), 0 <= getattr(views, key) <= 180, "degrees from 0 to 180"
    yield "views.overhead", views.overhead, -90 <= views.overhead <= 90, "degrees from -90 to 90"


def _renderer(config: schema.Config) -> Iterator[Rule]:
    renderer = config.renderer
    package = "gsplat" if isinstance(config.scene, schema.Gaussians) else "nerfacc"
    fits = renderer.backend in ("auto", "torch", package)
    yield "renderer.backend", renderer.backend, fits, f"auto, torch or {package} with scene.type={config.scene.type}"
    yield from at_least(renderer, "renderer", samples=1, occupancy_resolution=0, occupancy_every=1)
    cells = renderer.occupancy_resolution
    yield "renderer.occupancy_resolution", cells, cells <= 256, "at most 256"
    yield from at_least(renderer, "renderer", occupancy_threshold=0)
    background = renderer.background
    if isinstance(background, list):
        numbers = all(isinstance(c, (int, float)) and not isinstance(c, bool) for c in background)
        allowed = len(background) == 3 and numbers and all(0 <= c <= 1 for c in background)
    else:
        allowed = background in ("white", "random", "learned")
    yield "renderer.background", background, allowed, "white, random, learned or [r, g, b] from 0 to 1"


def _guidance(guidance: schema.Guidance) -> Iterator[Rule]:
    yield from at_least(guidance, "guidance", renders=1, scale=0, chunk=0)
    resamples = guidance.resamples
    allowed = resamples == "auto" or (type(resamples) is int and resamples >= 1)
    yield "guidance.resamples", resamples, allowed, "a whole number of at least 1, or auto"
    t_min, t_max = guidance.t_min, guidance.t_max
    for key, ramp in (("t_min", t_min), ("t_max", t_max)):
        inside = min(ramp.first, ramp.last) >= 0 and max(ramp.first, ramp.last) <= 1
        yield f"guidance.{key}", ramp, inside, "from 0 to 1, a fraction of the schedule"
    # Between the ends of the two ramps both are straight, so that their ends decide; an end may be a jump.
    ends = {t_min.begin, t_min.end, t_max.begin, t_max.end}
    moments = [end + side for end in ends for side in (-1e-9, 1e-9)]
    allowed = all(t_min.at(moment) < t_max.at(moment) for moment in moments)
    yield "guidance.t_min", t_min, allowed, f"less than guidance.t_max ({shown(t_max)}) all through the run"


def _training(config: schema.Config) -> Iterator[Rule]:
    lr, betas = config.optimizer.lr, config.optimizer.betas
    yield "optimizer.lr", lr, min(lr.first, lr.last) >= 0 < max(lr.first, lr.last), "greater than 0"
    inside = len(betas) == 2 and all(0 <= beta < 1 for beta in betas)
    yield "optimizer.betas", betas, inside, "two numbers from 0 up to, not including, 1"
    yield from positive(config.optimizer, "optimizer", "eps")
    gaussians = isinstance(config.scene, schema.Gaussians)
    for key in (f.name for f in fields(config.regularisers)):
        weight = getattr(config.regularisers, key)
        yield f"regularisers.{key}", weight, min(weight.first, weight.last) >= 0, "at least 0"
        other = key in ("orientation", "total_variation") if gaussians else key.startswith("gaussian_")
        unused = not other or max(weight.first, weight.last) == 0
        yield f"regularisers.{key}", weight, unused, f"0 (scene.type={config.scene.type} has no such term)"
    yield from at_least(config.training, "training", steps=1, preview_every=0, opinion_every=0, checkpoint_every=0)
    yield from at_least(config.training, "training", keep_checkpoints=1)


def _outputs(config: schema.Config) -> Iterator[Rule]:
    formats = config.mesh.formats
    known = (*MESH_FORMATS, SPLAT_FORMAT) if isinstance(config.scene, schema.Gaussians) else MESH_FORMATS
    allowed = all(kind in known for kind in formats)
    others = "" if SPLAT_FORMAT in known else f" ({SPLAT_FORMAT} is of scene.type=gaussians)"
    yield "mesh.formats", formats, allowed, f"a list of some of {', '.join(known)}{others}"
    yield from at_least(config.mesh, "mesh", resolution=2, faces=0, texture_size=1)
    threshold = config.mesh.threshold
    yield "mesh.threshold", threshold, 0 < threshold < 1, "a share of the light, above 0 and below 1"
    yield from at_least(config.turntable, "turntable", frames=1, fps=1, size=16)
    elevation = config.turntable.elevation
    yield "turntable.elevation", elevation, -90 < elevation < 90, "degrees between -90 and 90"
