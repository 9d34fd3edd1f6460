"""What the loss asks of a render besides the teacher's opinion: each function returns a scalar.

What it asks of the scene itself is the scene's to say: `Scene.penalties`.
"""

from __future__ import annotations

from torch import Tensor

from carv3d.renderers import Render


def sparsity(render: Render) -> Tensor:
    """Mean of sqrt(A^2 + 0.01) over the pixels' opacities A: prefers emptiness (Poole et al. 2022)."""
    return (render.opacity.square() + 0.01).sqrt().mean()


def opacity(render: Render) -> Tensor:
    """Mean of A (1 - A) over the pixels' opacities A, at most 1/4: prefers pixels that are empty or full."""
    return (render.opacity * (1 - render.opacity)).mean()


def orientation(render: Render) -> Tensor:
    """Mean over rays of sum_i w_i max(0, n_i.d)^2: weight of samples whose normals face away from the camera.

    A surface that one sees faces the camera; normals that do not are fog (Ref-NeRF, Verbin et al. 2022). As
    in DreamFusion the weights get no gradient, or else the cheapest answer would be to have no surface.

    Raises:
        ValueError: the render has no normals; render with `normals=True`.
    """
    samples = render.samples
    if samples is None or samples.normals is None:
        raise ValueError("the orientation loss needs samples with normals: render with normals=True")
    away = (samples.normals * samples.directions[samples.ray]).sum(-1).clamp_min(0)
    return (samples.weights.detach() * away.square()).sum() / len(samples.directions)
