"""Values that have the right type and still make no run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from carv3d.config import schema
from carv3d.config.rules import Rule, at_least, check, finite, known, positive, shown
from carv3d.config.scenes import FieldSection
from carv3d.errors import UserError


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
    for path in schema.KINDS:
        yield from of_kind(config, path)
    yield from _views(config.views)
    yield from _backend(config)
    yield from _guidance(config.guidance)
    yield from _training(config)
    yield from _outputs(config)


def _top(config: schema.Config) -> Iterator[Rule]:
    yield "seed", config.seed, 0 <= config.seed < 2**63, "from 0 to 2^63 - 1"
    device = re.fullmatch(r"auto|cpu|cuda(:\d+)?", config.device)
    yield "device", config.device, device is not None, "auto, cpu, cuda or cuda:N"
    yield "threads", config.threads, config.threads >= 0, "at least 0"
    yield "output_dir", config.output_dir, bool(config.output_dir.strip()), "a folder"


def of_kind(config: Any, path: str) -> Iterator[Rule]:
    """The rules of a section with a `type`, which are its own; a plug-in may have none."""
    section = config
    for key in path.split("."):
        section = getattr(section, key)
    if hasattr(section, "rules"):
        yield from section.rules(path)


def _views(views: schema.Views) -> Iterator[Rule]:
    for key in ("front", "back"):
        yield f"views.{key}", getattr(views, key), 0 <= getattr(views, key) <= 180, "degrees from 0 to 180"
    yield "views.overhead", views.overhead, -90 <= views.overhead <= 90, "degrees from -90 to 90"


def _backend(config: schema.Config) -> Iterator[Rule]:
    packages = {"splat": "gsplat", "volume": "nerfacc"}
    if (backend := getattr(config.renderer, "backend", None)) is None:
        return
    package = packages.get(getattr(config.scene, "renderer", "volume"), "torch")
    fits = backend in ("auto", "torch", package)
    yield "renderer.backend", backend, fits, f"auto, torch or {package} with scene.type={config.scene.type}"


def _guidance(guidance: schema.Guidance) -> Iterator[Rule]:
    yield from at_least(guidance, "guidance", renders=1, scale=0, chunk=0)
    resamples = guidance.resamples
    allowed = resamples == "auto" or (type(resamples) is int and resamples >= 1)
    yield "guidance.resamples", resamples, allowed, "a whole number of at least 1, or auto"
    for key, kind in (("proposal", "proposal"), ("noise", "coupling")):
        name = getattr(guidance, key)
        yield (f"guidance.{key}", name, *known(kind, name))
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
    field = getattr(config.scene, "renderer", "volume") == "volume"
    own = getattr(config.scene, "penalties", FieldSection.penalties if field else ())
    terms = ("sparsity", "opacity", *own)
    for key in (f.name for f in fields(config.regularisers)):
        weight = getattr(config.regularisers, key)
        yield f"regularisers.{key}", weight, min(weight.first, weight.last) >= 0, "at least 0"
        unused = key in terms or max(weight.first, weight.last) == 0
        yield f"regularisers.{key}", weight, unused, f"0 (scene.type={config.scene.type} has no such term)"
    yield from at_least(config.training, "training", steps=1, preview_every=0, opinion_every=0, checkpoint_every=0)
    yield from at_least(config.training, "training", keep_checkpoints=1)


def _outputs(config: schema.Config) -> Iterator[Rule]:
    formats = config.mesh.formats
    of_scene = getattr(config.scene, "mesh_formats", FieldSection.mesh_formats)
    allowed = all(kind in of_scene for kind in formats)
    others = "" if "splat" in of_scene else " (splat is of scene.type=gaussians)"
    what = f"a list of some of {', '.join(of_scene)}{others}" if of_scene else "[]: the scene can be exported in none"
    yield "mesh.formats", formats, allowed, what
    yield from at_least(config.mesh, "mesh", resolution=2, faces=0, texture_size=1)
    threshold = config.mesh.threshold
    yield "mesh.threshold", threshold, 0 < threshold < 1, "a share of the light, above 0 and below 1"
    yield from at_least(config.turntable, "turntable", frames=1, fps=1, size=16, sheet=16)
    elevation = config.turntable.elevation
    yield "turntable.elevation", elevation, -90 < elevation < 90, "degrees between -90 and 90"
