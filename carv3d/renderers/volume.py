"""Volume rendering of a field: one code path over dense (rays, samples) tensors, on CPU and CUDA."""

from __future__ import annotations

import torch
from torch import Tensor

from carv3d.cameras import Cameras
from carv3d.renderers.base import EMPTY, Background, RaySamples, Render, Renderer
from carv3d.renderers.compositing import accumulate, render_weights
from carv3d.renderers.occupancy import Occupancy
from carv3d.scenes import RadianceField


class VolumeRenderer(Renderer[RadianceField]):
    """Renders a `RadianceField` by quadrature along the rays through the pixels' centres.

    Each ray's stretch inside the scene's cube is cut into `samples` equal intervals. Only samples in occupied
    cells are asked of the scene. The state (occupancy, learned background) is in `state_dict()`.

    Args:
        samples: intervals a ray.
        background: see `Renderer`.
        occupancy_resolution: cells along a side of the cube; 0 asks the scene for every sample inside it.
        occupancy_every: steps between two looks at the scene's density.
        occupancy_threshold: the opacity that a ray may lose to pruning; see `Occupancy`. 0 prunes what is
            exactly empty.
    """

    def __init__(
        self,
        *,
        samples: int = 64,
        background: Background = "white",
        occupancy_resolution: int = 32,
        occupancy_every: int = 16,
        occupancy_threshold: float = 0.1,
    ) -> None:
        super().__init__(background)
        self.samples = samples
        self.occupancy_every = occupancy_every
        self.occupancy = (
            Occupancy(resolution=occupancy_resolution, threshold=occupancy_threshold) if occupancy_resolution else None
        )

    def update_occupancy(self, scene: RadianceField, step: int, generator: torch.Generator) -> None:
        """Called by the loop before each step; looks at the scene every `occupancy_every` steps."""
        if self.occupancy is not None and step % self.occupancy_every == 0:
            self.occupancy.refresh(scene, generator)

    def forward(
        self,
        scene: RadianceField,
        cameras: Cameras,
        generator: torch.Generator | None = None,
        *,
        training: bool = True,
        normals: bool = False,
    ) -> Render:
        """Render the scene from R cameras.

        Args:
            scene: the field, on the cameras' device.
            cameras: R cameras of H x W pixels.
            generator: draws the jitter and the random background; needed in training only.
            training: one random offset a ray within the intervals, instead of their midpoints; random
                backgrounds.
            normals: also give normals. They cost six density queries a sample.
        """
        if training and generator is None:
            raise ValueError("rendering for training draws random numbers: pass a generator")
        noise = generator if training else None
        origins, directions = (rays.reshape(-1, 3) for rays in cameras.rays())
        starts, length, t = self._intervals(origins, directions, scene.bound, noise)
        kept = (length > 0).expand_as(t)
        if self.occupancy is not None:
            kept = kept & self.occupancy.at(origins, directions, t, scene.bound)
        # The only wait for the GPU: the number of samples kept decides the shapes of all that follows.
        index = kept.reshape(-1).nonzero()[:, 0]
        if len(index) == 0:  # keeps the graph, and shapes that every scene accepts
            index = index.new_zeros(1)
        # Channel by channel in memory: norms over three contiguous numbers are slow on CPU.
        flat = t.view(-1).index_select(0, index)
        ray = index // self.samples
        points = torch.stack([o[ray] + flat * d[ray] for o, d in zip(origins.T, directions.T, strict=True)]).T
        found_density, found_rgb = scene.query(points)
        density = t.new_zeros(t.numel()).index_copy(0, index, found_density).view_as(t)
        weights = render_weights(density, starts, starts + length)
        opacity = weights.sum(-1, keepdim=True)
        rgb = accumulate(weights, self._scatter(found_rgb, index, t))
        pixels = len(cameras), cameras.height, cameras.width
        background = self.backdrop(len(cameras), noise).to(rgb)
        rgb = rgb + (1 - opacity) * background.repeat_interleave(cameras.height * cameras.width, 0)

        beyond = origins.norm(dim=-1, keepdim=True) + 3**0.5 * scene.bound
        expected = (weights * t).sum(-1, keepdim=True) / opacity.clamp_min(EMPTY)
        depth = torch.where(opacity > EMPTY, expected, beyond)

        found_normal = scene.normal(points) if normals else None
        normal = None
        if found_normal is not None:
            normal = _image(accumulate(weights, self._scatter(found_normal, index, t)), pixels)
        samples = RaySamples(weights, index, directions, found_normal)
        return Render(_image(rgb, pixels), _image(opacity, pixels), _image(depth, pixels), normal, samples)

    def _intervals(
        self, origins: Tensor, directions: Tensor, bound: float, noise: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Intervals' starts (rays, S), their length (rays, 1), and the samples in them (rays, S)."""
        near, far = _cube(origins, directions, bound)
        length = ((far - near) / self.samples)[:, None]
        order = torch.arange(self.samples, device=near.device, dtype=near.dtype)
        starts = torch.addcmul(near[:, None], order, length)
        if noise is None:
            return starts, length, starts + 0.5 * length
        offset = torch.rand(len(near), 1, generator=noise, device=noise.device).to(near)
        return starts, length, starts + offset * length

    @staticmethod
    def _scatter(values: Tensor, index: Tensor, t: Tensor) -> Tensor:
        """Values (M, D) of the samples kept to all samples, (D, rays, S), 0 elsewhere."""
        return values.new_zeros(values.shape[-1], t.numel()).index_copy(1, index, values.T).view(-1, *t.shape)


def _cube(origins: Tensor, directions: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """Where rays (N, 3) enter and leave the cube, (N,) each, from the origin on; both 0 for a miss."""
    low, high = (-bound - origins) / directions, (bound - origins) / directions
    near = torch.minimum(low, high).amax(-1).clamp_min(0)
    far = torch.maximum(low, high).amin(-1)
    # A ray that lies in a face's plane gives 0 / 0; a comparison with NaN is false, so it counts as a miss.
    hit = far > near
    return torch.where(hit, near, 0), torch.where(hit, far, 0)


def _image(values: Tensor, pixels: tuple[int, int, int]) -> Tensor:
    """(R * H * W, D) -> (R, D, H, W)."""
    return values.view(*pixels, -1).permute(0, 3, 1, 2)
