r"""A coupling of the K noises and a proposal of the timesteps of your own, in one file.

    PYTHONPATH=docs/examples carv3d generate "a red chair" guidance.coupling=own_coupling.orthogonal \
        guidance.proposal=own_coupling.flat_and_weighted guidance.resamples=4
"""

from __future__ import annotations

import torch
from torch import Tensor

from carv3d.sampling import Normals


def orthogonal(normals: Normals, resamples: int) -> Tensor:
    """Noises at right angles to each other, with norms of their own: eps (R, K, *shape).

    Each eps must stay N(0, I) by itself. The directions of Gaussian vectors, made orthogonal, are still uniform on the
    sphere, and a norm drawn apart makes each normal again. K must be at most the number of latents.
    """
    g = normals(resamples).flatten(2)  # (R, K, D)
    q = torch.linalg.qr(g.mT)[0].mT
    q = q * (q * g).sum(2, keepdim=True).sign()
    norms = normals(resamples)
    return (q * norms.flatten(2).norm(dim=2, keepdim=True)).view_as(norms)


def flat_and_weighted(p: Tensor, w: Tensor) -> Tensor:
    """A proposal q(t), not normalised: half p and half p w. Positive wherever p w is, so that nothing is biased."""
    return 0.5 * p + 0.5 * p * w / (p * w).sum()
