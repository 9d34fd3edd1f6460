"""The results of a run: previews, contact sheet, turntable, mesh."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from carv3d import mesh as meshes
from carv3d.cameras import Cameras, Sampler
from carv3d.generation.config import MeshConfig, TurntableConfig
from carv3d.images import sheet, write_png, write_video
from carv3d.mesh.base import Mesh
from carv3d.renderers import Renderer
from carv3d.runs import disk_errors
from carv3d.runs.storage import replace_files
from carv3d.scenes import Scene
from carv3d.teachers.denoising_preview import denoising_preview
from carv3d.training.trainer import Trainer

Progress = Callable[[int, int], None]
_RAYS = 2**16  # a call's memory: rays x samples x channels, forward only


@torch.no_grad()
def render_views(
    scene: Scene,
    renderer: Renderer[Any],
    cameras: Cameras,
    *,
    normals: bool = False,
    progress: Progress | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """rgb (R, 3, H, W), opacity (R, 1, H, W) and, if requested, normals as colours (R, 3, H, W), on the CPU."""
    device = next(scene.parameters()).device
    step = max(1, _RAYS // (cameras.height * cameras.width))
    rgb, opacity, normal = [], [], []
    for first in range(0, len(cameras), step):
        render = renderer(scene, cameras[first : first + step].to(device), training=False, normals=normals)
        rgb.append(render.rgb.cpu())
        opacity.append(render.opacity.cpu())
        if render.normal is not None:  # the length of a normal is the opacity: empty pixels are white
            normal.append((render.normal * 0.5 + 1 - 0.5 * render.opacity).cpu())
        if progress:
            progress(min(first + step, len(cameras)), len(cameras))
    return torch.cat(rgb), torch.cat(opacity), torch.cat(normal) if normals else None


def write_preview(scene: Scene, renderer: Renderer[Any], sampler: Sampler, path: Path) -> None:
    """Four sides of the scene as one small PNG, at the size and distance of the training renders."""
    cameras = sampler.around(4, 15.0, sampler.height)
    rgb, _, _ = render_views(scene, renderer, cameras)
    write_png(sheet(F.interpolate(rgb, scale_factor=2, mode="bilinear"), 4), path)


def write_denoising_preview(trainer: Trainer, path: Path) -> None:
    """How the teacher denoises the front view at several timesteps; see `carv3d.teachers.denoising_preview`."""
    rng = torch.Generator(trainer.device).manual_seed(0)  # not the run's, whose draws must not depend on previews
    sampler = trainer.sampler
    with torch.no_grad():
        _, z, condition = trainer.look(sampler.around(1, 15.0, sampler.height), rng)
    pictures, columns = denoising_preview(trainer.teacher, z, condition, trainer.carv.p, trainer.carv.guidance, rng)
    write_png(sheet(pictures, columns), path)


def write_contact_sheet(scene: Scene, renderer: Renderer[Any], sampler: Sampler, size: int, path: Path) -> None:
    """Eight views around and above, of `size` pixels a side: colour in the first row, normals in the second."""
    rgb, normals = [], []
    for cameras in (sampler.around(6, 15.0, size), sampler.around(2, 55.0, size)):
        colour, _, normal = render_views(scene, renderer, cameras, normals=True)
        rgb.append(colour)
        if normal is not None:  # a plug-in's renderer may have none
            normals.append(normal)
    write_png(sheet(torch.cat(rgb + normals), 8), path)


def write_turntable(
    scene: Scene,
    renderer: Renderer[Any],
    sampler: Sampler,
    section: TurntableConfig,
    path: Path,
    progress: Progress | None = None,
) -> None:
    """One turn around the scene as .mp4."""
    cameras = sampler.around(section.frames, section.elevation, section.size)

    def frames() -> Iterator[Tensor]:
        for first in range(len(cameras)):
            yield render_views(scene, renderer, cameras[first : first + 1])[0][0]
            if progress:
                progress(first + 1, len(cameras))

    write_video(frames(), path, section.fps)


def export(scene: Scene, section: MeshConfig, folder: Path) -> tuple[Mesh | None, list[Path]]:
    """Export the scene in the formats of the section, see `Config.export`: its coloured surface, Gaussians as splats.

    Returns:
        the mesh, if one of the formats is a mesh's; the files.
    """
    mesh, files = None, []
    if section.formats == "auto":
        raise ValueError("formats are a list here: pass Config.export")
    formats = [kind for kind in section.formats if kind in meshes.FORMATS]
    if formats:
        field = scene.field(section.resolution)
        mesh = meshes.extract(
            field,
            resolution=section.resolution,
            threshold=section.threshold,
            faces=section.faces or None,
        )
        if section.texture == "uv":
            mesh = meshes.bake_texture(mesh, field, section.texture_size)
    splats = scene.splats() if "splat" in section.formats else None
    others = {} if splats is None else {"splat.ply": splats}
    with disk_errors(folder):
        if mesh is not None:
            files = meshes.save(mesh, folder, formats, others=others)
        elif others:
            folder.mkdir(parents=True, exist_ok=True)
            replace_files(folder, others)
            files = [folder / name for name in others]
    return mesh, files
