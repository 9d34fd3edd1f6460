"""Distribution matching, the objective of `carv3d distill`.

DMD (Yin et al., arXiv 2311.18828, equations 7 and 8, algorithm 2) moves an output z along
`(mu_fake - mu_real) / mean |z - mu_real|` with `mu = (z_t - sigma eps_hat) / alpha`, the denoised z_t. Written with
residuals `r = eps_hat - eps`, `z - mu = (sigma / alpha) r`: the schedule's factors cancel, and the direction is

    (r_real - r_fake) / mean |r_real|  =  (eps_real - eps_fake) / mean |eps_real - eps|

whose weight in t is 1. The remaining factor depends on the data, so that no proposal over t alone can follow it: the
importance proposal `q ∝ p w` of CARV (arXiv 2605.21489, section 3.2) is the uniform one here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from carv3d.objectives.base import Draw, Objective

if TYPE_CHECKING:
    from torch import Tensor

    from carv3d.config.keys import Weighting
    from carv3d.objectives.fake_score import FakeScore
    from carv3d.teachers.schedule import NoiseSchedule

_TINY = 1e-6  # smallest mean absolute residual; an untrained network has about 1


@dataclass
class DistributionMatching(Objective):
    """The scaled difference of the teacher's guided score and the fake score.

    Attributes:
        fake: the score of the generator's outputs, which the caller trains.
    """

    fake: FakeScore

    def residual(self, draw: Draw) -> Tensor:
        """`(eps_guided - eps_fake) / mean |eps_guided - eps|`."""
        real, size = self.real(draw)
        return (real + draw.eps - self.fake.eps_hat(draw.z_t, draw.t, draw.condition)) / size

    def real(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """The teacher's residual `eps_guided - eps` (N, ...), and the mean of its absolute values (N, 1, ...)."""
        real = draw.guided(draw.predict()) - draw.eps
        return real, real.abs().flatten(1).mean(1).clamp_min(_TINY).view(-1, *[1] * (draw.z.ndim - 1))

    def weight(self, schedule: NoiseSchedule, weighting: Weighting) -> Tensor:
        """1 at every timestep, whatever the weighting."""
        return super().weight(schedule, "uniform")
