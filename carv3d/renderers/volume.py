"""Volume rendering of a field: one call, by plain torch on any device, nerfacc on CUDA, or a field's own kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from carv3d.cameras import Cameras
from carv3d.kernels import jit
from carv3d.kernels.voxel_volume import FAINT
from carv3d.renderers import compositing, nerfacc_backend
from carv3d.renderers.backend import choose
from carv3d.renderers.base import EMPTY, RaySamples, Render, Renderer
from carv3d.renderers.config import RendererConfig
from carv3d.renderers.occupancy import Occupancy
from carv3d.renderers.rays import Rays
from carv3d.scenes import RadianceField


class VolumeRenderer(Renderer[RadianceField]):
    """Renders a `RadianceField` by quadrature along the rays through the pixels' centres.

    The part of each ray inside the scene's cube is divided into `samples` equal intervals. The scene is queried only
    at samples in occupied cells. The state (occupancy, learned background) is in `state_dict()`.

    Args:
        config: background, backend, samples and occupancy.
        device: where it will render.

    Raises:
        UserError: nerfacc is asked for and does not work here.
    """

    def __init__(self, config: RendererConfig, *, device: torch.device | None = None) -> None:
        super().__init__(config.background)
        self.config = config
        kernels = {"nerfacc": nerfacc_backend.problem, "numba": jit.problem}
        self.backend = choose(config.backend, kernels, device or torch.device("cpu"))
        cells = config.occupancy_resolution
        self.occupancy = Occupancy(resolution=cells, threshold=config.occupancy_threshold) if cells else None

    def update_occupancy(self, scene: RadianceField, step: int, generator: torch.Generator) -> None:
        """Called before each step; refreshes the occupancy every `occupancy_every` steps."""
        if self.occupancy is not None and step % self.config.occupancy_every == 0:
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
            normals: also compute normals, with six density queries a sample.
        """
        if training and generator is None:
            raise ValueError("rendering for training draws random numbers: pass a generator")
        noise = generator if training else None
        origins, directions = (rays.reshape(-1, 3) for rays in cameras.rays())
        rays = Rays.through(origins, directions, scene.bound, self.config.samples, noise)
        sums, samples = None, None
        if self.backend == "numba" and not (normals and training):  # a loss on normals needs the samples
            sums = scene.composite(rays, None if self.occupancy is None else self.occupancy.occupied, normals=normals)
        if sums is None:
            sums, samples = self._sampled(scene, rays, training=training, normals=normals)
        rgb, opacity, distance, *normal = sums.split([3, 1, 1, 3] if normals else [3, 1, 1], -1)

        pixels = len(cameras), cameras.height, cameras.width
        background = self.backdrop(len(cameras), noise, rgb.device).to(rgb)
        rgb = rgb + (1 - opacity) * background.repeat_interleave(cameras.height * cameras.width, 0)
        beyond = origins.norm(dim=-1, keepdim=True) + 3**0.5 * scene.bound
        depth = torch.where(opacity > EMPTY, distance / opacity.clamp_min(EMPTY), beyond)
        return Render(
            _image(rgb, pixels),
            _image(opacity, pixels),
            _image(depth, pixels),
            _image(normal[0], pixels) if normal else None,
            samples,
        )

    def _sampled(self, scene: RadianceField, rays: Rays, *, training: bool, normals: bool) -> tuple[Tensor, RaySamples]:
        """Query the scene at the samples, and sum along the rays: what `RadianceField.composite` describes."""
        backend = nerfacc_backend if self.backend == "nerfacc" else compositing
        # The only wait for the GPU: the number of kept samples determines the shapes of the following tensors.
        index = backend.kept(rays, self.occupancy, scene.bound)
        if len(index) == 0:  # one sample keeps the graph, and shapes that every scene accepts
            index = index.new_zeros(1)
        ray, t, points = rays.at(index)
        density, found_rgb = scene.query(points)
        found_normal = None
        if normals and training:
            found_normal = scene.normal(points)
        elif normals:  # outside of training, invisible samples get no normals, which cost six density queries each
            seen = backend.composite(rays, index, density, [])[0] > FAINT
            found_normal = torch.zeros_like(points)
            found_normal[seen] = scene.normal(points[seen])
        values = [found_rgb, t[:, None], *([] if found_normal is None else [found_normal])]
        weights, opacity, (rgb, distance, *normal) = backend.composite(rays, index, density, values)
        found = RaySamples(weights, ray, t, rays.directions, found_normal)
        return torch.cat([rgb, opacity, distance, *normal], -1), found


def _image(values: Tensor, pixels: tuple[int, int, int]) -> Tensor:
    """(R * H * W, D) -> (R, D, H, W)."""
    return values.view(*pixels, -1).permute(0, 3, 1, 2)
