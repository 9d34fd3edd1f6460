"""The quality of a run's object: similarity to the true object in the built-in world, and CLIP scores for any
prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from carv3d import build
from carv3d import mesh as meshes
from carv3d.cameras import Cameras
from carv3d.errors import UserError
from carv3d.evaluation.clip import DEFAULT_CLIP, Clip, views
from carv3d.generation.generation import load_trained
from carv3d.generation.results import render_views
from carv3d.renderers.mesh import render_mesh
from carv3d.runs import Run
from carv3d.shapes import ALL_THINGS, Gallery, Thing, parse

# Angles between those of the previews. Training cameras are random, so that fixed cameras are held out.
_AZIMUTHS = [10.0, 100.0, -170.0, -80.0, 55.0, 145.0, -125.0, -35.0, 30.0, 120.0, -150.0, -60.0]
_ELEVATIONS = [0.0, 0.0, 0.0, 0.0, 20.0, 20.0, 20.0, 20.0, 45.0, 45.0, 70.0, 70.0]


def held_out_cameras(size: int = 64) -> Cameras:
    """The twelve cameras of evaluation."""
    return Cameras.look_at_origin(torch.tensor(_AZIMUTHS), torch.tensor(_ELEVATIONS), height=size, width=size)


@dataclass(frozen=True)
class Score:
    """The similarity of an object's pictures to the true ones.

    Attributes:
        psnr: dB, over all pixels of all views, rgb on white.
        iou: mean over the views of the intersection over union of the silhouettes (opacity > 1/2).
        retrieval_rank: the rank of the true object among all objects of the world, nearest first; 1 is right.
    """

    psnr: float
    iou: float
    retrieval_rank: int


class Judge:
    """Compares pictures with the true pictures of every object of the world, from `held_out_cameras`."""

    def __init__(self, size: int = 64) -> None:
        """Render all objects, which takes seconds."""
        self.cameras = held_out_cameras(size)
        self._gallery = Gallery(self.cameras)

    def truth(self, thing: Thing) -> tuple[Tensor, Tensor]:
        """rgb (12, 3, H, W) and opacity (12, 1, H, W) of an object."""
        return self._gallery.truth(thing), self._gallery.opacity(thing)

    def score(self, thing: Thing, rgb: Tensor, opacity: Tensor) -> Score:
        """Compare rgb (12, 3, H, W) on white and opacity (12, 1, H, W) with the true object's."""
        errors = self._gallery.errors(rgb).mean(1)
        rank = 1 + int((errors < errors[ALL_THINGS.index(thing)]).sum())
        return Score(*self.fidelity(thing, rgb, opacity), rank)

    def fidelity(self, thing: Thing, rgb: Tensor, opacity: Tensor) -> tuple[float, float]:
        """PSNR and IoU, which are fast to compute: see `Score`."""
        true_rgb, true_opacity = self.truth(thing)
        error = max((true_rgb - rgb).square().mean().item(), 1e-10)
        return -10 * torch.tensor(error).log10().item(), silhouette_iou(opacity, true_opacity)


def silhouette_iou(opacity: Tensor, truth: Tensor) -> float:
    """Mean over views of the intersection over union, both (R, 1, H, W); two empty silhouettes agree."""
    a, b = opacity.flatten(1) > 0.5, truth.flatten(1) > 0.5
    union = (a | b).sum(1)
    return torch.where(union > 0, (a & b).sum(1) / union.clamp_min(1), 1.0).mean().item()


def evaluate_run(run: Run, clip: Clip | None = None, others: Sequence[str] = ()) -> dict[str, Any]:
    """The figures of `carv3d evaluate`: of the scene and of the exported mesh, by the available measures.

    Args:
        run: with a checkpoint.
        clip: computes CLIP scores; None for none. others: prompts that the run's prompt must be distinguished from,
            see `carv3d.evaluation.clip.Alignment`.

    Raises:
        UserError: there is no checkpoint; or neither a true object nor a CLIP model.
    """
    prompt, thing, why = run.config.prompt, None, "the teacher is not of the built-in world"
    if getattr(run.config.teacher, "builtin_world", False):
        try:
            thing = parse(prompt)
        except UserError as error:
            why = str(error).rstrip(".")
    if thing is None and clip is None:
        raise UserError(
            f"there is nothing to judge {prompt!r} by: no true object ({why}); give --clip {DEFAULT_CLIP}, or a folder "
            "with such a model"
        )
    trained = load_trained(run)
    path = next((path for path in sorted(run.mesh.glob("mesh.*")) if path.suffix in (".glb", ".obj", ".ply")), None)
    mesh = meshes.load(path) if path else None
    figures: dict[str, Any] = {"prompt": prompt}
    if thing is not None:
        figures["object"] = thing.caption
        judge = Judge()
        rgb, opacity, _ = render_views(trained.scene, trained.renderer, judge.cameras)
        drawn = render_mesh(mesh, judge.cameras, supersample=2) if mesh else None
        figures |= asdict(judge.score(thing, rgb, opacity))
        of_mesh = asdict(judge.score(thing, drawn.rgb, drawn.opacity)) if drawn else {}
        figures |= {f"mesh_{field.name}": of_mesh.get(field.name) for field in fields(Score)}
    if clip is not None:
        cameras = views(build.camera_sampler(run.config))
        rgb, _, _ = render_views(trained.scene, trained.renderer, cameras)
        figures |= {"clip": clip.path, **asdict(clip.alignment(rgb, prompt, others))}
        if mesh:
            drawn = render_mesh(mesh, cameras, supersample=2)
            found = asdict(clip.alignment(drawn.rgb, prompt, others))
            figures |= {f"mesh_{key}": value for key, value in found.items()}
    return figures | {"seconds": trained.seconds, "steps": trained.step}
