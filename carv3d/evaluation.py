"""How good a run's object is, where the true object is known: the built-in world."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from carv3d.cameras import Cameras
from carv3d.errors import UserError
from carv3d.generation import load_trained
from carv3d.mesh import load
from carv3d.renderers.mesh import render_mesh
from carv3d.results import render_views
from carv3d.runs import Run
from carv3d.shapes import ALL_THINGS, SHAPES, Thing, colourise, palette, parse, shade_maps

# Angles between those of the previews; training cameras are random, so every fixed camera is held out.
_AZIMUTHS = [10.0, 100.0, -170.0, -80.0, 55.0, 145.0, -125.0, -35.0, 30.0, 120.0, -150.0, -60.0]
_ELEVATIONS = [0.0, 0.0, 0.0, 0.0, 20.0, 20.0, 20.0, 20.0, 45.0, 45.0, 70.0, 70.0]


def held_out_cameras(size: int = 64) -> Cameras:
    """The twelve cameras that objects are judged from."""
    return Cameras.look_at_origin(torch.tensor(_AZIMUTHS), torch.tensor(_ELEVATIONS), height=size, width=size)


@dataclass(frozen=True)
class Score:
    """How near an object's pictures are to the true ones.

    Attributes:
        psnr: dB, over all pixels of all views, rgb on white.
        iou: mean over the views of the intersection over union of the silhouettes (opacity > 1/2).
        retrieval_rank: where the true object stands among all objects of the world, nearest first; 1 is right.
    """

    psnr: float
    iou: float
    retrieval_rank: int


class Judge:
    """Holds the true pictures of every object of the world from `held_out_cameras`."""

    def __init__(self, size: int = 64) -> None:
        """Render the world; takes seconds, so keep the judge."""
        self.cameras = held_out_cameras(size)
        self._maps = {shape: shade_maps(shape, self.cameras) for shape in SHAPES}

    def truth(self, thing: Thing) -> tuple[Tensor, Tensor]:
        """rgb (12, 3, H, W) and opacity (12, 1, H, W) of an object."""
        maps = self._maps[thing.shape]
        return colourise(maps, palette(thing.colour)), maps[:, -1:]

    def score(self, thing: Thing, rgb: Tensor, opacity: Tensor) -> Score:
        """Compare rgb (12, 3, H, W) on white and opacity (12, 1, H, W) with the true object's."""
        errors = {other: (self.truth(other)[0] - rgb).square().mean().item() for other in ALL_THINGS}
        rank = 1 + sum(error < errors[thing] for error in errors.values())
        return Score(*self.fidelity(thing, rgb, opacity), rank)

    def fidelity(self, thing: Thing, rgb: Tensor, opacity: Tensor) -> tuple[float, float]:
        """PSNR and IoU alone, which are found at once: see `Score`."""
        true_rgb, true_opacity = self.truth(thing)
        error = max((true_rgb - rgb).square().mean().item(), 1e-10)
        return -10 * torch.tensor(error).log10().item(), silhouette_iou(opacity, true_opacity)


def silhouette_iou(opacity: Tensor, truth: Tensor) -> float:
    """Mean over views of the intersection over union, both (R, 1, H, W); two empty silhouettes agree."""
    a, b = opacity.flatten(1) > 0.5, truth.flatten(1) > 0.5
    union = (a | b).sum(1)
    return torch.where(union > 0, (a & b).sum(1) / union.clamp_min(1), 1.0).mean().item()


def evaluate_run(run: Run) -> dict[str, Any]:
    """Everything `carv3d evaluate` reports: the field and the exported mesh against the true object.

    Raises:
        UserError: the prompt is not of the built-in world, or there is no checkpoint.
    """
    try:
        thing = parse(run.config.prompt)
    except UserError as error:
        raise UserError(f"only objects of the built-in world have a true form to compare with: {error}") from None
    trained = load_trained(run)
    judge = Judge()
    rgb, opacity, _ = render_views(trained.scene, trained.renderer, judge.cameras)
    field = judge.score(thing, rgb, opacity)
    figures: dict[str, Any] = {
        "prompt": run.config.prompt,
        "object": thing.caption,
        "psnr": field.psnr,
        "iou": field.iou,
        "retrieval_rank": field.retrieval_rank,
        "mesh_psnr": None,
        "mesh_iou": None,
        "mesh_retrieval_rank": None,
        "seconds": trained.seconds,
        "steps": trained.step,
    }
    for path in sorted(run.mesh.glob("mesh.*")):
        if path.suffix in (".glb", ".obj", ".ply"):
            drawn = render_mesh(load(path), judge.cameras, supersample=2)
            mesh = judge.score(thing, drawn.rgb, drawn.opacity)
            figures |= {
                "mesh_psnr": mesh.psnr,
                "mesh_iou": mesh.iou,
                "mesh_retrieval_rank": mesh.retrieval_rank,
            }
            break
    return figures
