"""Initial positions of Gaussians: points of a ball, or of a .ply file."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from carv3d.config.paths import user_path
from carv3d.errors import UserError

_NEIGHBOURS = 3


class PointCloud(NamedTuple):
    """Coloured points.

    Attributes:
        positions: (N, 3) world units.
        rgb: (N, 3) in [0, 1].
    """

    positions: Tensor
    rgb: Tensor


def ball(count: int, radius: float, generator: torch.Generator) -> PointCloud:
    """Points evenly distributed in a ball around the origin, grey with a little noise."""
    draws = torch.randn(count, 7, generator=generator, device=generator.device)
    # Uniform on the sphere, and the cube root of a uniform share of the volume (a normal's distribution function
    # is uniform).
    share = torch.special.ndtr(draws[:, 3:4])
    positions = torch.nn.functional.normalize(draws[:, :3], dim=-1) * radius * share.pow(1 / 3)
    return PointCloud(positions, (0.5 + 0.025 * draws[:, 4:]).clamp(0, 1))


def read(path: Path | str, bound: float) -> PointCloud:
    """The points of a .ply file: columns x, y, z in world units, and red, green, blue if it has them, else grey.

    Raises:
        UserError: no such file, not a .ply, no points, wrong columns, a coordinate that is not finite, or points
            outside the cube [-bound, bound]^3.
    """
    import trimesh  # half a second

    path = user_path(path)
    if not path.is_file():
        raise UserError(f"no point cloud {path}: scene.points takes a .ply file, or nothing for a ball of points")
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):  # the error is reported below
            warnings.simplefilter("ignore")
            loaded: Any = trimesh.load(path, file_type="ply", process=False)
            # Without points trimesh gives an empty scene.
            positions = np.array(getattr(loaded, "vertices", ()), np.float32).reshape(-1, 3)
            visual = loaded if isinstance(loaded, trimesh.PointCloud) else getattr(loaded, "visual", None)
            colours = getattr(visual, "colors", getattr(visual, "vertex_colors", None))
    except (ValueError, KeyError, IndexError, AttributeError, TypeError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"{path} is not a point cloud: give a .ply with vertex columns x, y, z ({reason})") from None
    if not len(positions):
        raise UserError(f"{path} has no points: give a .ply with at least one vertex, with columns x, y, z")
    if broken := int((~np.isfinite(positions).all(1)).sum()):
        raise UserError(f"{path}: {broken} of {len(positions)} points are not finite: remove them from the file")
    if outside := int((np.abs(positions).max(1) > bound).sum()):
        raise UserError(
            f"{path}: {outside} of {len(positions)} points lie outside the cube: scale them into [-{bound:g}, "
            f"{bound:g}] or raise scene.bound"
        )
    grey = np.full((len(positions), 3), 0.5, np.float32)
    known = colours is not None and len(colours) == len(positions)
    rgb = np.asarray(colours)[:, :3].astype(np.float32) / 255 if known else grey
    return PointCloud(torch.from_numpy(positions), torch.from_numpy(rgb))


def spacing(positions: Tensor, least: float) -> Tensor:
    """(N,) mean distance of each point to its three nearest neighbours, `least` or more; world units."""
    from scipy.spatial import cKDTree

    if len(positions) < 2:
        return positions.new_full((len(positions),), least)
    points = positions.cpu().numpy()
    distances, _ = cKDTree(points).query(points, min(_NEIGHBOURS, len(points) - 1) + 1)
    return torch.from_numpy(distances[:, 1:].mean(1)).to(positions).clamp_min(least)
