"""Distribution matching: the direction for the generator, and the loss of the fake score.

DMD (Yin et al., arXiv 2311.18828, equations 7 and 8, algorithm 2) moves an output z along
`(mu_fake - mu_real) / mean |z - mu_real|` with `mu = (z_t - sigma eps_hat) / alpha`, the denoised z_t. Written with
residuals `r = eps_hat - eps`, `z - mu = (sigma / alpha) r`: the schedule's factors cancel, and the direction is

    (r_real - r_fake) / mean |r_real|  =  (eps_real - eps_fake) / mean |eps_real - eps|

whose weight in t is 1. What is left depends on the data, so that no proposal over t alone can follow it: the
importance proposal `q ∝ p w` of CARV (arXiv 2605.21489, section 3.2) is the uniform one here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from carv3d.distillation.networks import Denoiser
from carv3d.estimator import Residual
from carv3d.sampling import Proposal, draws
from carv3d.teachers import DiffusersTeacher
from carv3d.teachers.diffusers_pipeline import TextCondition

_TINY = 1e-6  # of a mean absolute residual that is 1 for a network that knows nothing


def score_difference(
    teacher: DiffusersTeacher, fake: Denoiser, condition: TextCondition, scale: float, *, parts: bool = False
) -> Residual:
    """What `carv3d.estimator.estimate` averages: descending `(z * fbar).sum() / R` moves z towards the teacher.

    Args:
        teacher: the true score, guided.
        fake: the score of the generator's outputs, without guidance.
        condition: of the R outputs.
        scale: of the teacher's guidance.
        parts: put the teacher's own part, `r_real / mean |r_real|`, before the difference along the channels: to see
            what each adds to the noise.
    """

    def residual(z: Tensor, t: Tensor, eps: Tensor, r: Tensor) -> Tensor:
        told = condition[r]
        real = teacher.residual(z, t, eps, told, scale)
        alpha, sigma = teacher.schedule.at(t, z)
        difference = real + eps - fake.eps_hat(alpha * z + sigma * eps, t, told)
        size = real.abs().flatten(1).mean(1).clamp_min(_TINY).view(-1, *[1] * (z.ndim - 1))
        return (torch.cat([real, difference], 1) if parts else difference) / size

    return residual


def denoising_loss(fake: Denoiser, z: Tensor, condition: TextCondition, q: Proposal, rng: torch.Generator) -> Tensor:
    """The ordinary loss of a diffusion model on z (N, C, h, w): the mean squared error of what the network predicts.

    The N timesteps are stratified over the batch; a scalar with a graph.
    """
    t, eps = (
        found[:, 0] for found in draws(len(z), 1, z.shape[1:], q, rng, z.dtype, kind="global", coupling="independent")
    )
    alpha, sigma = fake.schedule.at(t, z)
    target = alpha * eps - sigma * z if fake.prediction == "v_prediction" else eps
    return (fake.predict(alpha * z + sigma * eps, t, condition) - target).square().mean()
