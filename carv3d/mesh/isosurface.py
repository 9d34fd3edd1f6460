"""The surface of a density field: where to cut it, and the cut."""

from __future__ import annotations

import numpy as np
import torch
import trimesh
from scipy import ndimage
from skimage.measure import marching_cubes
from torch import Tensor

from carv3d.cameras import orbit
from carv3d.errors import UserError
from carv3d.mesh.base import Field, Floats, Mesh, in_chunks
from carv3d.mesh.texture import surface_rgb

VIEWS = 12
VIEW_SIZE = 64
IOU_TOLERANCE = 0.002


def extract(
    scene: Field,
    *,
    resolution: int = 128,
    threshold: float | None = None,
    faces: int | None = 10_000,
    smallest_part: float = 0.01,
) -> Mesh:
    """The closed surface `density = threshold` of a field, with vertex colours.

    Args:
        scene: the field.
        resolution: samples along each side of the cube [-bound, bound]^3.
        threshold: density per world unit. None finds the one whose outlines agree best with the outlines
            of the rendered field (`best_threshold`).
        faces: simplify to about this many triangles; None keeps all. More are kept where fewer would
            open the surface.
        smallest_part: a separate part is kept if it has this fraction of the largest part's volume; the
            rest are floaters. Hollows that no camera can see are filled.

    Raises:
        UserError: there is no surface at the threshold, or the field is not finite.
    """
    grid = _density_grid(scene, resolution)
    if threshold is None:
        threshold = best_threshold(scene, grid)
    if not 0 < threshold < grid.max():
        raise UserError(
            f"no surface at density {threshold:.4g}: the densities range from {grid.min():.4g} to"
            f" {grid.max():.4g}; try threshold={grid.max() / 4:.3g}"
        )
    full, threshold, removed = _closed(grid, threshold, scene.bound, smallest_part)
    surface = _simplify(full, faces)
    vertices = np.array(surface.vertices, np.float32)
    normals = np.array(surface.vertex_normals, np.float32)
    return Mesh(
        vertices=vertices,
        faces=np.array(surface.faces, np.int64),
        normals=normals,
        rgb=surface_rgb(scene, vertices, normals),
        info={
            "threshold": float(threshold),
            "density_max": float(grid.max()),
            "faces_before_simplification": len(full.faces),
            "parts_removed": removed,
            "watertight": bool(surface.is_watertight),
        },
    )


def _density_grid(scene: Field, resolution: int) -> Floats:
    """Densities at the (S, S, S) corners of a regular grid over the bounding cube, indexed x, y, z."""
    axis = torch.linspace(-scene.bound, scene.bound, resolution)
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    grid = in_chunks(scene.density, points, scene).reshape(resolution, resolution, resolution).numpy()
    if not np.isfinite(grid).all():
        raise UserError("the scene's density is not finite, its training diverged; go back to a checkpoint")
    if grid.max() <= 0:
        raise UserError("the scene is empty, its density is 0 everywhere: train it for more steps first")
    return grid


def best_threshold(scene: Field, grid: Floats) -> float:
    """The density whose isosurface has the outlines of the rendered field.

    A mesh cut at h covers a ray exactly if the largest density on that ray reaches h, so one largest value
    a ray gives the outline of every mesh. They are held against the rays that the field itself makes more
    than half opaque, by intersection over union over all rays of a ring of views.

    Args:
        scene: the field, asked for the rays' opacity.
        grid: (S, S, S) its densities, from which the mesh will be cut.

    Raises:
        UserError: no ray is half opaque.
    """
    peaks, opacities = _project(scene, grid)
    order = np.argsort(-peaks)
    peaks, opaque = peaks[order], opacities[order] > 0.5
    if not opaque.any():
        raise UserError(
            f"no surface: the scene is nowhere opaque, its densities range from {grid.min():.4g} to"
            f" {grid.max():.4g}; train it for more steps, or try threshold={grid.max() / 2:.3g}"
        )
    both = np.cumsum(opaque)
    iou = both / (np.arange(1, len(peaks) + 1) + opaque.sum() - both)
    # A threshold falls between two different peaks. The top of the curve is flat and, ray by ray, rough: its
    # middle is a steadier choice than its highest point. Zeros have no logarithm: it spans 1 : 100 at most.
    below = np.append(peaks[1:], 0)
    top = np.flatnonzero((iou >= iou[peaks > below].max() - IOU_TOLERANCE) & (peaks > below))
    high = peaks[top[0]]
    return float(np.sqrt(max(below[top[-1]], 0.01 * high) * high))


def _project(scene: Field, grid: Floats) -> tuple[Floats, Floats]:
    """For every ray that meets the cube: the grid's largest density on it, and the field's opacity."""
    bound, steps = scene.bound, len(grid)
    # From four bounds away, 40 degrees hold a ball of 1.4 bounds.
    elevations = [(0.0, 25.0, 50.0)[view % 3] for view in range(VIEWS)]
    cameras = orbit(VIEWS, elevations, distance=4 * bound, height=VIEW_SIZE, width=VIEW_SIZE)
    volume = torch.from_numpy(grid)[None, None]
    # Haze this thin is smooth, and little of the opacity: the grid's value will do for it.
    faint = 0.3 / bound
    peaks, opacities = [], []
    for view in range(VIEWS):
        origins, directions = (rays.reshape(-1, 3).float() for rays in cameras[view : view + 1].rays())
        crossings = torch.stack([(-bound - origins) / directions, (bound - origins) / directions])
        near, far = crossings.amin(0).amax(-1), crossings.amax(0).amin(-1)
        hits = near < far
        step = ((far - near) / steps)[hits, None]
        depths = near[hits, None] + step * (torch.arange(steps) + 0.5)
        points = origins[hits, None] + depths[..., None] * directions[hits, None]
        on_grid = _interpolate(volume, points / bound)
        density = on_grid.clone()
        dense = on_grid > faint
        if dense.any():
            density[dense] = in_chunks(scene.density, points[dense], scene)
        peaks.append(on_grid.amax(1))
        opacities.append(1 - torch.exp(-(density * step).sum(1)))
    return torch.cat(peaks).numpy(), torch.cat(opacities).numpy()


def _interpolate(volume: Tensor, points: Tensor) -> Tensor:
    """Trilinear values of a (1, 1, S, S, S) grid over [-1, 1]^3, indexed x, y, z, at (N, M, 3) points."""
    # grid_sample's last coordinate is the first axis of the volume.
    return torch.nn.functional.grid_sample(
        volume, points.flip(-1)[None, None], align_corners=True, padding_mode="border"
    )[0, 0, 0]


def _clean(grid: Floats, threshold: float, smallest_part: float) -> tuple[Floats, int]:
    """The grid without floaters and hidden hollows, and how many floaters there were.

    Both are connected regions of the grid's cells (by their six neighbours), which is simpler and faster
    than taking the finished mesh apart.
    """
    empty, _ = ndimage.label(np.pad(grid < threshold, 1, constant_values=True))
    solid = (empty != empty[0, 0, 0])[1:-1, 1:-1, 1:-1]
    parts, count = ndimage.label(solid)
    volumes = np.bincount(parts.ravel(), minlength=count + 1)
    volumes[0] = 0
    kept = volumes >= smallest_part * volumes.max()
    kept[0] = False
    hollow = solid & (grid < threshold)
    cleaned = np.where(hollow, grid.max(), grid)
    cleaned[solid & ~kept[parts]] = 0
    return cleaned, int(count - kept.sum())


def _cut(grid: Floats, threshold: float, bound: float) -> trimesh.Trimesh:
    """Marching cubes; a border of empty cells closes what reaches the cube's sides."""
    size = len(grid)
    vertices, faces, _, _ = marching_cubes(np.pad(grid, 1), threshold, gradient_direction="ascent")
    vertices = (vertices - 1) * (2 * bound / (size - 1)) - bound
    # What lies in the border is pressed against the side, not quite flat: no two vertices may meet.
    inner = vertices.clip(-bound, bound)
    return trimesh.Trimesh(inner + 1e-3 * (vertices - inner), faces)


def _closed(grid: Floats, threshold: float, bound: float, smallest_part: float) -> tuple[trimesh.Trimesh, float, int]:
    """The cleaned surface, the threshold it was cut at, and the number of floaters removed.

    Where two sheets all but touch, marching cubes may put four triangles on one edge. Such a touch sits at
    one exact threshold, so a neighbouring one is taken: the surface moves by far less than a cell.
    """
    for nudge in (0.0, 0.002, -0.002, 0.005, -0.005, 0.01, -0.01):
        level = min(threshold * (1 + nudge), 0.999 * float(grid.max()))
        cleaned, removed = _clean(grid, level, smallest_part)
        surface = _cut(cleaned, level, bound)
        if surface.is_watertight:
            break
    return surface, level, removed


def _simplify(surface: trimesh.Trimesh, faces: int | None) -> trimesh.Trimesh:
    """About `faces` triangles; twice as many, and so on, where fewer would open a closed surface."""
    while faces is not None and faces < len(surface.faces):
        simple = surface.simplify_quadric_decimation(face_count=faces)
        if not surface.is_watertight or (simple.is_watertight and simple.is_winding_consistent):
            return simple
        faces *= 2
    return surface
