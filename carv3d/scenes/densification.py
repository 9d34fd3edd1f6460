"""Densification: adding and removing Gaussians.

A Gaussian with a large gradient by its centre on the image is cloned, or split if it is large (Kerbl et al. 2023,
section 5). The criterion is the mean norm of this gradient over all renders since the last densification. The norm of
a noisy gradient depends mostly on the noise, and so on the teacher and on K. Therefore the threshold is a multiple of
the mean over all Gaussians, and not a fixed gradient.
"""

from __future__ import annotations

import logging
import math

import torch
from torch import Tensor

from carv3d.errors import UserError
from carv3d.scenes.base import ImageProjection, RowMap
from carv3d.scenes.config import DensificationConfig
from carv3d.scenes.gaussian_cloud import GaussianCloud
from carv3d.system.transfer import constant

log = logging.getLogger(__name__)

_SHRINK = 1.6  # of the halves of a split (Kerbl et al. 2023, section 5.2)
_RESET = 2.0  # opacity after a reset, in units of the pruning threshold


def observe(scene: GaussianCloud, projection: ImageProjection) -> None:
    """Add the norms of a step's gradients on the image to the scene's sums, for each render separately."""
    gradient = projection.centres.grad
    if gradient is None:
        return
    # In units of half the image and of one render's loss, so that resolution and R do not matter.
    half = constant(gradient, projection.width / 2, projection.height / 2)
    norm = (gradient * half).norm(dim=-1) * len(gradient)
    seen = projection.radii > 0
    scene.gradient_sum += (norm * seen).sum(0)
    scene.times_seen += seen.sum(0)


def change(
    scene: GaussianCloud, rule: DensificationConfig, step: int, progress: float, generator: torch.Generator
) -> RowMap | None:
    """Densify, prune and reset at the steps of the config.

    Raises:
        UserError: see `_prune`.
    """
    if not rule.begin <= progress <= rule.end:
        return None
    parents, reset = None, False
    if rule.every and step % rule.every == 0:
        parents = _densify(scene, rule, generator)
        parents = parents[_prune(scene, rule, step)]
        _zero_notes(scene)
    # Not after the last step, because opacities could not grow again.
    if rule.reset_every and step % rule.reset_every == 0 and progress < 1:
        level = torch.as_tensor(_RESET * rule.prune_opacity).logit().to(scene.opacity_logits)
        scene.opacity_logits.clamp_(max=level)
        parents = torch.arange(len(scene), device=level.device) if parents is None else parents
        reset = True
    return None if parents is None else RowMap(parents, (scene.opacity_logits,) if reset else ())


def _densify(scene: GaussianCloud, rule: DensificationConfig, generator: torch.Generator) -> Tensor:
    """Clone and split; return (N,) the row that each new row comes from."""
    mean = scene.gradient_sum / scene.times_seen.clamp_min(1)
    reference = scene.gradient_sum.sum() / scene.times_seen.sum().clamp_min(1)
    ranked = mean.argsort(descending=True, stable=True)
    chosen = ranked[: int((mean > rule.gradient * reference).sum())]
    room = max(rule.most - len(scene), 0)
    if len(chosen) > room:
        log.info(
            "%d Gaussians would be densified, scene.densify.most=%d leaves room for %d", len(chosen), rule.most, room
        )
    chosen = chosen[:room].sort().values
    before = len(scene)
    split = scene.scales[chosen].amax(1) > rule.split_scale * scene.bound
    parents = torch.cat([torch.arange(before, device=chosen.device), chosen])
    _take(scene, parents)
    first, second = chosen, torch.arange(before, len(scene), device=chosen.device)

    # New positions are drawn from the Gaussian itself; one of two clones keeps its position.
    draws = torch.randn(2, len(chosen), 3, generator=generator, device=generator.device).to(scene.positions)
    offsets = (scene.axes()[first] @ (draws * scene.scales[first])[..., None])[..., 0]
    scene.positions[first] += offsets[0] * split[:, None]
    scene.positions[second] += offsets[1]
    # The halves of a split are smaller. Two clones have together the opacity of the one: 1 - (1 - a)^2
    # (Rota Bulò et al. 2024, arXiv 2404.06109).
    halves = torch.cat([first[split], second[split]])
    scene.log_scales[halves] -= math.log(_SHRINK)
    twins = torch.cat([first[~split], second[~split]])
    alpha = 1 - (1 - scene.opacities[twins]).sqrt()
    scene.opacity_logits[twins] = alpha.clamp(1e-6, 1 - 1e-6).logit()
    return parents


def _prune(scene: GaussianCloud, rule: DensificationConfig, step: int) -> Tensor:
    """Remove Gaussians that are faint, too large or outside the cube; return the kept rows.

    Raises:
        UserError: no Gaussian is left; the message says how many each threshold removes.
    """
    faint = scene.opacities < rule.prune_opacity
    large = scene.scales.amax(1) > rule.prune_scale * scene.bound
    outside = scene.positions.abs().amax(1) > scene.bound
    kept = (~(faint | large | outside)).nonzero()[:, 0]
    if not len(kept):
        removed = {
            f"{int(faint.sum())} are fainter than scene.densify.prune_opacity={rule.prune_opacity:g}": faint,
            f"{int(large.sum())} are larger than scene.densify.prune_scale={rule.prune_scale:g}": large,
            f"{int(outside.sum())} lie outside scene.bound={scene.bound:g}": outside,
        }
        reasons = ", ".join(text for text, which in removed.items() if which.any())
        raise UserError(
            f"step {step}: every one of the {len(scene)} Gaussians is pruned: {reasons}; relax that threshold, or "
            "lower optimizer.lr or the regularisers"
        )
    _take(scene, kept)
    return kept


def _take(scene: GaussianCloud, rows: Tensor) -> None:
    for parameter in scene.parameters():
        parameter.data = parameter.data[rows]
        parameter.grad = None


def _zero_notes(scene: GaussianCloud) -> None:
    scene.gradient_sum = torch.zeros_like(scene.opacity_logits.data)
    scene.times_seen = torch.zeros_like(scene.opacity_logits.data)
