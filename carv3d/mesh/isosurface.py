"""The surface of a density field: threshold, extraction, simplification."""

from __future__ import annotations

import math

import numpy as np
import torch
import trimesh
from manifold3d import Manifold
from manifold3d import Mesh as ManifoldMesh
from scipy import ndimage
from skimage.measure import marching_cubes
from torch import Tensor

from carv3d.errors import UserError
from carv3d.mesh.base import Field, Floats, Mesh, in_chunks
from carv3d.mesh.texture import surface_rgb

VIEWS = 16


def extract(
    scene: Field,
    *,
    resolution: int = 128,
    threshold: float = 0.15,
    faces: int | None = 10_000,
    smallest_part: float = 0.01,
) -> Mesh:
    """The closed surface of a field, with vertex colours.

    Args:
        scene: the field.
        resolution: samples along each side of the cube [-bound, bound]^3.
        threshold: the surface is where the field has absorbed this share of the light, see `shade`. It means
            the same for a hard field and a soft one. Lower is fatter.
        faces: simplify to about this many triangles; None keeps all.
        smallest_part: a separate part is kept if it has this fraction of the largest part's volume; the
            rest are floaters.

    Raises:
        UserError: there is no surface at the threshold, or the field is not finite.
    """
    density = _density_grid(scene, resolution)
    grid = shade(density, scene.bound)
    if not 0 < threshold < grid.max():
        raise UserError(
            f"no surface where {threshold:.3g} of the light is absorbed: the densities range from"
            f" {density.min():.4g} to {density.max():.4g} and absorb {grid.max():.2g} at most; train for more steps,"
            f" or try threshold={grid.max() / 2:.2g}"
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
            "density_max": float(density.max()),
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


def shade(grid: Floats, bound: float, views: int = VIEWS) -> Floats:
    """The share of light that the field absorbs on the way to each point of the grid, along the direction with the
    least absorption. It is 0 outside and near 1 deep inside. Unlike the density, it is smooth where the density is
    rough, and it has no hollows: points behind a wall have a high value, whatever their density.

    Args:
        grid: (S, S, S) densities over [-bound, bound]^3, indexed x, y, z.
        bound: world units.
        views: parallel projections, from directions spread over the sphere.

    Returns:
        (S, S, S) in [0, 1).
    """
    size, reach = len(grid), math.sqrt(3.0)
    volume = torch.from_numpy(grid)[None, None]
    least = torch.ones_like(volume)
    for direction in _directions(views):
        aside = torch.linalg.cross(direction, torch.eye(3)[direction.abs().argmin()])
        aside = aside / aside.norm()
        # Columns: the axes of a grid that looks along `direction`, its first index the depth. Both grids' points
        # are given last axis first, as grid_sample wants them.
        axes = torch.stack([torch.linalg.cross(direction, aside), aside, -direction], 1).flip(0)
        density = _resample(volume, reach * axes, "zeros")
        thickness = (density.cumsum(2) - density / 2) * (2 * reach * bound / (size - 1))
        least = torch.minimum(least, _resample(-torch.expm1(-thickness), axes.T / reach, "border"))
    return least[0, 0].numpy()


def _directions(count: int) -> Tensor:
    """(count, 3) unit vectors, a Fibonacci lattice on the sphere."""
    index = torch.arange(count) + 0.5
    z, azimuth = 1 - 2 * index / count, math.pi * (1 + math.sqrt(5)) * index
    radius = (1 - z * z).sqrt()
    return torch.stack([radius * azimuth.cos(), radius * azimuth.sin(), z], 1)


def _resample(volume: Tensor, matrix: Tensor, padding: str) -> Tensor:
    """Trilinear values of a (1, 1, S, S, S) grid over [-1, 1]^3 at `matrix @ p` for its own points p."""
    points = torch.nn.functional.affine_grid(
        torch.cat([matrix, torch.zeros(3, 1)], 1)[None], list(volume.shape), align_corners=True
    )
    return torch.nn.functional.grid_sample(volume, points, align_corners=True, padding_mode=padding)


def _without_floaters(grid: Floats, threshold: float, smallest_part: float) -> tuple[Floats, int]:
    """The grid without its small parts (by their cells' six neighbours), and how many there were."""
    parts, count = ndimage.label(grid >= threshold)
    volumes = np.bincount(parts.ravel(), minlength=count + 1)
    kept = volumes >= smallest_part * volumes[1:].max(initial=0)
    kept[0] = True  # the background
    return np.where(kept[parts], grid, 0), int((~kept).sum())


def _cut(grid: Floats, threshold: float, bound: float) -> trimesh.Trimesh:
    """Marching cubes; a border of empty cells closes surfaces at the cube's sides."""
    size = len(grid)
    vertices, faces, _, _ = marching_cubes(np.pad(grid, 1), threshold, gradient_direction="ascent")
    vertices = (vertices - 1) * (2 * bound / (size - 1)) - bound
    # Vertices in the border are moved near the cube's side; a small distance remains, so that none coincide.
    inner = vertices.clip(-bound, bound)
    return trimesh.Trimesh(inner + 1e-3 * (vertices - inner), faces)


def _closed(grid: Floats, threshold: float, bound: float, smallest_part: float) -> tuple[trimesh.Trimesh, float, int]:
    """The surface without floaters, its threshold, and the number of removed floaters. Where two sheets nearly touch,
    marching cubes may put four triangles on one edge. This happens at one exact threshold, so that a slightly
    different one is used: the surface moves by much less than a cell.
    """
    for nudge in (0.0, 0.002, -0.002, 0.005, -0.005, 0.01, -0.01):
        level = min(threshold * (1 + nudge), 0.999 * float(grid.max()))
        cleaned, removed = _without_floaters(grid, level, smallest_part)
        surface = _cut(cleaned, level, bound)
        if surface.is_watertight:
            break
    return surface, level, removed


def _simplify(surface: trimesh.Trimesh, faces: int | None) -> trimesh.Trimesh:
    """Simplify to about `faces` triangles. A closed surface stays closed: sheets that touch after the collapse of
    edges are separated again.
    """
    if faces is None or faces >= len(surface.faces):
        return surface
    simple = surface.simplify_quadric_decimation(face_count=faces)
    if not surface.is_watertight or (simple.is_watertight and simple.is_winding_consistent):
        return simple
    solid = Manifold(ManifoldMesh(np.float32(simple.vertices), np.uint32(simple.faces)))
    if solid.is_empty():  # below this number the surface opens: too many faces are better than a hole
        return surface
    repaired = solid.to_mesh()
    apart = trimesh.Trimesh(repaired.vert_properties[:, :3], repaired.tri_verts, process=False)
    # Other programs would merge vertices of two sheets at one point: each is moved into its own sheet.
    _, first, count = np.unique(apart.vertices, axis=0, return_inverse=True, return_counts=True)
    touching = count[first.ravel()] > 1
    vertices = np.array(apart.vertices)
    vertices[touching] -= 1e-3 * apart.scale * apart.vertex_normals[touching]
    return trimesh.Trimesh(vertices, apart.faces)
