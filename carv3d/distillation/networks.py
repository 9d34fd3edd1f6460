"""Networks that start as the teacher's denoiser: the generator and the fake score."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from carv3d.errors import UserError
from carv3d.teachers import DiffusersTeacher
from carv3d.teachers.diffusers_pipeline import TextCondition
from carv3d.teachers.families.stable_diffusion import StableDiffusion


class Denoiser:
    """A trainable float32 copy of a teacher's denoiser, told what the teacher is told.

    Attributes:
        network: what is trained.
        schedule: the teacher's.
    """

    def __init__(self, teacher: DiffusersTeacher) -> None:
        """Copy the teacher's network.

        Raises:
            UserError: the teacher is not of Stable Diffusion's family.
        """
        if not isinstance(teacher.family, StableDiffusion):
            raise UserError(
                f"{teacher.weights.source} cannot be distilled: only pipelines of the class StableDiffusionPipeline "
                "can (Stable Diffusion 1 and 2, the built-in teacher)"
            )
        self._family = copy.copy(teacher.family)
        self._family.loader = replace(teacher.family.loader, dtype=torch.float32)
        self._family.network = copy.deepcopy(teacher.family.network).float().requires_grad_(True)
        self.schedule = teacher.schedule

    @property
    def network(self) -> nn.Module:
        """See the class."""
        return self._family.network

    @property
    def prediction(self) -> str:
        """What the network predicts: "epsilon" or "v_prediction"."""
        return str(self._family.prediction)

    def predict(self, z_t: Tensor, t: Tensor, condition: TextCondition) -> Tensor:
        """The network's own prediction (N, C, h, w) for noised latents z_t (N, C, h, w), t (N,), N rows."""
        return self._family.predict(z_t, t, _words(condition), condition.camera)

    def eps_hat(self, z_t: Tensor, t: Tensor, condition: TextCondition) -> Tensor:
        """The noise (N, C, h, w) that the network sees; without guidance."""
        return self._family.eps_hat(z_t, t, _words(condition), condition.camera)

    def one_step(self, noise: Tensor, timestep: int, condition: TextCondition) -> Tensor:
        """Latents (N, C, h, w) from noise (N, C, h, w) in one call: `(noise - sigma eps_hat) / alpha` at `timestep`.

        DMD (Yin et al., arXiv 2311.18828, section 3.1): the generator is a denoiser held at a fixed timestep that is
        given pure noise.
        """
        t = torch.full((len(noise),), timestep, device=noise.device)
        alpha, sigma = self.schedule.at(t, noise)
        return (noise - sigma * self.eps_hat(noise, t, condition)) / alpha


def _words(condition: TextCondition) -> dict[str, Tensor]:
    return {name: states.float() for name, states in condition.mixed(condition.cond).items()}
