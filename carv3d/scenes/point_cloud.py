"""Initial positions of Gaussians: points of a ball, or of a .ply file."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from carv3d.config.paths import user_path
from carv3d.errors import UserError
from carv3d.scenes.spherical_harmonics import C0
from carv3d.scenes.splat_file import WORLD_TO_FILE

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
    """The points of a .ply file: columns x, y, z in world units, and their colours, see `_colours`; without any, grey.

    The axes are the world's (z up), those of a splat file (one with columns `f_dc_*`) are that layout's (y down).

    Raises:
        UserError: no such file, not a .ply, no points or fewer than it says, wrong columns, colours that are not
            understood, a coordinate that is not finite, or points outside the cube [-bound, bound]^3.
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
            vertex = loaded.metadata["_ply_raw"]["vertex"]
            names = vertex["properties"] if len(positions) else ()
            columns = {name: np.asarray(vertex["data"][name]).reshape(-1) for name in names}
            kinds = {name: np.dtype(kind) for name, kind in vertex["properties"].items()}
    except (ValueError, KeyError, IndexError, AttributeError, TypeError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"{path} is not a point cloud: give a .ply with vertex columns x, y, z ({reason})") from None
    if not len(positions):
        raise UserError(f"{path} has no points: give a .ply with at least one vertex, with columns x, y, z")
    if len(positions) != vertex["length"]:
        raise UserError(f"{path} has {len(positions)} of its {vertex['length']} points: it was cut, get it again")
    if broken := int((~np.isfinite(positions).all(1)).sum()):
        raise UserError(f"{path}: {broken} of {len(positions)} points are not finite: remove them from the file")
    if outside := int((np.abs(positions).max(1) > bound).sum()):
        raise UserError(
            f"{path}: {outside} of {len(positions)} points lie outside the cube: scale them into [-{bound:g}, "
            f"{bound:g}] or raise scene.bound"
        )
    try:
        rgb = _colours(columns, kinds)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    rgb = np.full((len(positions), 3), 0.5, np.float32) if rgb is None else rgb
    points = torch.from_numpy(positions)
    points = points @ WORLD_TO_FILE if all(name in columns for name in _DC) else points
    return PointCloud(points, torch.from_numpy(rgb))


_DC = ("f_dc_0", "f_dc_1", "f_dc_2")
_RGB = [("red", "green", "blue"), ("diffuse_red", "diffuse_green", "diffuse_blue"), ("r", "g", "b")]


def _colours(columns: dict[str, Any], kinds: dict[str, np.dtype[Any]]) -> Any:
    """Colours (N, 3) float32 in [0, 1] of the columns of a .ply file; None if no column is a colour.

    Splats have coefficients `f_dc_0` to `f_dc_2` (Kerbl et al. 2023). Else there are red, green, blue, also with
    `diffuse_` before them or as r, g, b: unsigned whole numbers of the type's whole range, or decimals from 0 to 1.

    Raises:
        ValueError: columns that seem to be colours and are not understood.
    """
    if all(name in columns for name in _DC):
        found = np.stack([columns[name] for name in _DC], 1).astype(np.float32) * C0 + 0.5
        return found.clip(0, 1)
    for names in _RGB:
        if all(name in columns for name in names):
            kind = {kinds[name] for name in names}
            found = np.stack([columns[name] for name in names], 1)
            if all(each.kind == "u" for each in kind) and len(kind) == 1:
                return found.astype(np.float32) / np.iinfo(kind.pop()).max
            if (
                all(each.kind == "f" for each in kind)
                and np.isfinite(found).all()
                and found.min() >= 0
                and found.max() <= 1
            ):
                return found.astype(np.float32)
            raise ValueError(
                f"the colours {', '.join(names)} are not understood: give them as uchar from 0 to 255 or as float from "
                "0 to 1"
            )
    strange = [name for name in columns if re.search(r"red|green|blue|rgb|colou?r|f_dc|^[rgb]$", name.lower())]
    if strange:
        raise ValueError(
            f"columns that seem to be colours and are not understood: {', '.join(strange)}: name them red, green, "
            "blue, or remove them"
        )
    return None


def spacing(positions: Tensor, least: float) -> Tensor:
    """(N,) mean distance of each point to its three nearest neighbours, `least` or more; world units."""
    from scipy.spatial import cKDTree

    if len(positions) < 2:
        return positions.new_full((len(positions),), least)
    points = positions.cpu().numpy()
    distances, _ = cKDTree(points).query(points, min(_NEIGHBOURS, len(points) - 1) + 1)
    return torch.from_numpy(distances[:, 1:].mean(1)).to(positions).clamp_min(least)
