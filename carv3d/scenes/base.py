"""The interfaces of scenes for renderers, the mesh extractor and the training loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from carv3d.mesh.base import Field
    from carv3d.renderers.rays import Rays


@dataclass(frozen=True)
class ImageProjection:
    """The positions of a scene's parts on the images of a step; the scene gets them after the step.

    Attributes:
        centres: (R, N, 2) pixels x, y; after the backward pass `grad` is the gradient of the loss.
        radii: (R, N) pixels, 0 for a part that is not visible.
        height, width: of the images, pixels.
    """

    centres: Tensor
    radii: Tensor
    height: int
    width: int


@dataclass(frozen=True)
class RowMap:
    """The origin of each row of a scene's parameters after a change: row i comes from row `parents[i]` before.

    Attributes:
        parents: (N,) int64.
        reset: parameters with new values, whose optimiser state must be cleared.
    """

    parents: Tensor
    reset: tuple[torch.nn.Parameter, ...] = ()


class Scene(torch.nn.Module, ABC):
    """What is optimised: an object inside the cube [-bound, bound]^3.

    Attributes:
        bound: half the side of the cube, world units.
    """

    def __init__(self, *, bound: float) -> None:
        super().__init__()
        if bound <= 0:
            raise ValueError(f"bound must be positive, got {bound}")
        self.bound = bound

    def parameter_groups(self, lr: float, progress: float = 0.0) -> list[dict[str, Any]]:
        """Parameter groups for `torch.optim`, always the same in the same order; by default one group of all
        parameters.

        Args:
            lr: the learning rate of the scene's main parameters.
            progress: the part of the run that is done, in [0, 1], for scenes whose parts have their own schedules.
        """
        return [{"params": list(self.parameters()), "lr": lr}]

    def penalties(self) -> dict[str, Callable[[], Tensor]]:
        """The scene's own regularisers, scalars, by their names in the config's `regularisers`."""
        return {}

    def after_step(
        self, step: int, progress: float, projection: ImageProjection | None, generator: torch.Generator
    ) -> RowMap | None:
        """Called by the loop after optimiser step `step`.

        A scene that changes its number of parts gives its parameters new `data` and returns the row map; the loop
        then updates the optimiser's state.

        Args:
            step: steps done.
            progress: the share of the run that is done.
            projection: from the step's renders; None from a renderer that has none.
            generator: of the run.
        """
        return None

    def splats(self) -> bytes | None:
        """A .ply file of Gaussians for splat viewers; None for a scene without Gaussians."""
        return None

    @abstractmethod
    def field(self, resolution: int) -> Field:
        """What the mesh extractor reads: density and colour at points, as fine as `resolution` samples a side."""


class RadianceField(Scene):
    """A density and a colour at every point of the cube; nothing outside it.

    Attributes:
        normal_step: distance over which `normal` differentiates the density, world units.
    """

    def __init__(self, *, bound: float, normal_step: float) -> None:
        super().__init__(bound=bound)
        self.normal_step = normal_step

    def penalties(self) -> dict[str, Callable[[], Tensor]]:
        return {"total_variation": self.total_variation}

    def field(self, resolution: int) -> Field:
        return self

    @abstractmethod
    def query(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Density and colour at points.

        Args:
            points: (N, 3) world units, N >= 1.

        Returns:
            density (N,) per world unit, >= 0 and 0 outside the cube; rgb (N, 3) in [0, 1].
        """

    def density(self, points: Tensor) -> Tensor:
        """Density alone, (N,) at points (N, 3): what `query` returns first."""
        return self.query(points)[0]

    def normal(self, points: Tensor) -> Tensor:
        """Unit normals (N, 3) at points (N, 3): against the density's gradient, 0 where that vanishes.

        The gradient is a central difference over `normal_step` and not autograd's: a loss on normals then
        needs first derivatives only (`grid_sample` has no second one in 3-D), and the step smooths the
        gradient, which in a trilinear field jumps from cell to cell and in a hash grid is noise at the finest
        levels. Six taps: the four of a tetrahedron are first order only, and 40 degrees off where the density
        bends.
        """
        step = self.normal_step * torch.eye(3, dtype=points.dtype, device=points.device)[:, None]
        taps = torch.cat([points + step, points - step])  # (6, N, 3)
        above, below = self.density(taps.view(-1, 3)).view(2, 3, -1)
        gradient = (above - below).T / (2 * self.normal_step)
        return -torch.nn.functional.normalize(gradient, dim=-1, eps=1e-4)

    def composite(self, rays: Rays, occupied: Tensor | None, *, normals: bool) -> Tensor | None:
        """Sums along rays by one kernel of this kind of field, instead of a query at every sample; None: it has none.

        Args:
            rays: in float32.
            occupied: (m, m, m) bool, cells of the cube outside which the density counts as 0; None: all count.
            normals: also of normals.

        Returns:
            (rays, 5), or with normals (rays, 8): the sums of weight times rgb, weight, weight times distance, and
            weight times normal; differentiable in the field's parameters, the normals apart.
        """
        return None

    @abstractmethod
    def total_variation(self) -> Tensor:
        """How rough the field is: mean squared difference of neighbours, summed over the axes; scalar."""


def blob(points: Tensor, blob_density: float, blob_std: float) -> Tensor:
    """Bias (N,) of the density's logit: a cone, `blob_density` at the origin and 0 at radius `blob_std`.

    Optimisation from text starts from a soft ball at the centre of the view; without it the first gradients
    fill the cube with fog. The linear profile is Magic3D's (Lin et al. 2023), of DreamFusion's blob (Poole et
    al. 2022).
    """
    # Coordinate by coordinate: torch's norm over three numbers is slow, and its gradient at the origin
    # undefined.
    x, y, z = points.unbind(-1)
    radius = (x * x + y * y + z * z + 1e-12).sqrt()
    return blob_density * (1 - radius / blob_std)


def inside(points: Tensor, bound: float) -> Tensor:
    """(N,) bool: which points (N, 3) lie in the cube."""
    x, y, z = points.abs().unbind(-1)
    return torch.maximum(torch.maximum(x, y), z) <= bound
