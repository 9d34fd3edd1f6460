"""The terms of the loss besides the distillation loss. Terms of the scene itself are in `Scene.penalties`."""

from __future__ import annotations

from torch import Tensor

from carv3d.generation.config import RegulariserConfig
from carv3d.renderers import Render
from carv3d.scenes import Scene


def regularise(weights: RegulariserConfig, progress: float, render: Render, scene: Scene) -> Tensor:
    """The weighted sum of all terms, a scalar.

    Args:
        weights: linear schedules by term.
        progress: the part of the run that is done, 0 to 1.
        render: with normals if the weight of `orientation` is positive.
        scene: whose penalties are added. A penalty without a key in the config has weight 1.
    """
    total = render.rgb.new_zeros(())
    for name, term in (("sparsity", sparsity), ("opacity", opacity), ("orientation", orientation)):
        if (w := getattr(weights, name).at(progress)) > 0:
            total = total + w * term(render)
    for name, penalty in scene.penalties().items():
        w = getattr(weights, name).at(progress) if hasattr(weights, name) else 1.0
        if w > 0:
            total = total + w * penalty()
    return total


def sparsity(render: Render) -> Tensor:
    """Mean of sqrt(A^2 + 0.01) over the pixels' opacities A: prefers emptiness (Poole et al. 2022)."""
    return (render.opacity.square() + 0.01).sqrt().mean()


def opacity(render: Render) -> Tensor:
    """Mean of A (1 - A) over the pixels' opacities A, at most 1/4: prefers pixels that are empty or full."""
    return (render.opacity * (1 - render.opacity)).mean()


def orientation(render: Render) -> Tensor:
    """Mean over rays of sum_i w_i max(0, n_i.d)^2: weight of samples whose normals face away from the camera.

    Visible surfaces face the camera; other normals are those of fog (Ref-NeRF, Verbin et al. 2022). As in DreamFusion
    the weights get no gradient, because otherwise the loss would remove the surface.

    Raises:
        ValueError: the render has no normals; render with `normals=True`.
    """
    samples = render.samples
    if samples is None or samples.normals is None:
        raise ValueError("the orientation loss needs samples with normals: render with normals=True")
    away = (samples.normals * samples.directions[samples.ray]).sum(-1).clamp_min(0)
    return (samples.weights.detach() * away.square()).sum() / len(samples.directions)
