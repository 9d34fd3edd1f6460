"""A picture's signature: for every shared draw, the direction of the diffusion loss's gradient, projected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from carv3d.attribution.draws import SharedDraws
from carv3d.attribution.gradients import RowGradients
from carv3d.attribution.pictures import Pictures
from carv3d.attribution.projection import Projection
from carv3d.errors import UserError
from carv3d.teachers import DiffusersTeacher
from carv3d.teachers.text_condition import TextCondition


@dataclass(frozen=True)
class Signatures:
    """Of n pictures and B draws.

    Attributes:
        direction: (n, B, D) float32, projected gradients of length 1. norm: (n, B) float32, of the gradients before
            projection.
    """

    direction: Tensor
    norm: Tensor


class SignatureMaker:
    """Makes signatures.

    Attributes:
        gradients, projection, draws: the parts of the computation.
    """

    def __init__(
        self, teacher: DiffusersTeacher, gradients: RowGradients, projection: Projection, draws: SharedDraws, rows: int
    ) -> None:
        """Set up.

        Args:
            teacher: its denoiser's gradients are taken.
            gradients: of chosen layers of that denoiser.
            projection: of their sizes.
            draws: shared by all pictures.
            rows: most (picture, draw) pairs in one call of the denoiser.
        """
        self.teacher, self.gradients, self.projection, self.draws, self.rows = (
            teacher,
            gradients,
            projection,
            draws,
            rows,
        )

    def __call__(self, pictures: Pictures, rows: Sequence[int]) -> Signatures:
        """Of some rows of the pictures.

        Raises:
            UserError: a gradient is zero or not finite.
        """
        with torch.no_grad():
            z = self.teacher.encode(pictures.load(rows).to(self.teacher.device))
        captions = [pictures.captions[row] for row in rows]
        condition = self.teacher.caption_condition(captions, pictures.camera[list(rows)])
        t, eps, draws = self.draws.t, self.draws.eps, len(self.draws)
        parts = []
        for part in torch.arange(len(z) * draws, device=z.device).split(self.rows):
            n, b = part.div(draws, rounding_mode="floor"), part % draws
            losses = self._losses(z[n], t[b], eps[b], condition[n])
            parts.append(self.projection(self.gradients(losses)))
        short, norm = (torch.cat(found).unflatten(0, (len(z), draws)) for found in zip(*parts, strict=True))
        length = short.norm(dim=-1, keepdim=True)
        bad = (~torch.isfinite(length) | (length == 0))[..., 0].nonzero()
        if len(bad):
            row, draw = bad[0].tolist()
            raise UserError(
                f"the loss's gradient of {pictures.names[rows[row]]} is zero or not finite at t = {int(t[draw])}: "
                "choose other layers, or use teacher.dtype=float32"
            )
        return Signatures(short / length, norm)

    def _losses(self, z: Tensor, t: Tensor, eps: Tensor, condition: TextCondition) -> Tensor:
        """(N,) the training loss of the denoiser: the squared error of its own kind of prediction.

        For N pairs, conditioned on the caption, without guidance. Another weight w(t) would change only the length of
        a draw's gradient. The errors of a velocity and of a flow are those of the noise over alpha_t, see
        `Family.eps_hat`.
        """
        alpha, sigma = self.teacher.schedule.at(t, z)
        with torch.enable_grad():
            eps_hat = self.teacher.predict(alpha * z + sigma * eps, t, condition, ("cond",))["cond"]
            error = eps_hat - eps
            if self.teacher.family.prediction != "epsilon":
                error = error / alpha
            return error.square().flatten(1).sum(1)
