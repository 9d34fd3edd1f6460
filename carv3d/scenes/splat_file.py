"""Gaussians as a .ply in the layout of Kerbl et al. 2023, which splat viewers open.

The layout's axes come from photographs: y points down and, seen from the front, z towards the viewer. carv3d's world
has z up and the front on +x. `WORLD_TO_FILE` turns one into the other.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from carv3d.scenes.gaussian_cloud import GaussianCloud
from carv3d.scenes.spherical_harmonics import functions, rotation

WORLD_TO_FILE = torch.tensor([[0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]])
"""World -y, -z, x become file x, y, z: a rotation, which viewers turn by half a turn about z and show upright."""

_QUATERNION = (0.5, 0.5, -0.5, 0.5)  # of this rotation, w first
_DEGREE = 3  # readers of a fixed layout expect 62 numbers a Gaussian, whatever the scene's degree


@torch.no_grad()
def to_ply(scene: GaussianCloud) -> bytes:
    """A scene as a little-endian .ply file, a vertex a Gaussian.

    The 62 columns are x y z, nx ny nz, f_dc_*, f_rest_* (45), opacity, scale_*, rot_*: world units and the file's axes,
    normals 0, harmonics up to degree 3 with all of red before green before blue, opacities as logits, scales as
    logarithms of standard deviations, unit quaternions w first.
    """
    n = len(scene)
    rest = scene.colours.new_zeros(n, functions(_DEGREE) - 1, 3)
    for degree in range(1, scene.degree + 1):
        rows = slice(functions(degree - 1) - 1, functions(degree) - 1)
        rest[:, rows] = rotation(degree, WORLD_TO_FILE).to(rest) @ scene.harmonics[:, rows]
    columns = {
        "x y z": scene.positions @ WORLD_TO_FILE.T.to(scene.positions),
        "nx ny nz": torch.zeros_like(scene.positions),
        "f_dc_0 f_dc_1 f_dc_2": scene.colours,
        " ".join(f"f_rest_{i}" for i in range(3 * rest.shape[1])): rest.mT.reshape(n, -1),
        "opacity": scene.opacity_logits[:, None],
        "scale_0 scale_1 scale_2": scene.log_scales,
        "rot_0 rot_1 rot_2 rot_3": _turned(F.normalize(scene.rotations, dim=-1)),
    }
    properties = [f"property float {name}" for names in columns for name in names.split()]
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {n}", *properties, "end_header", ""]
    table = torch.cat(list(columns.values()), 1).cpu().numpy()
    return "\n".join(header).encode("ascii") + table.astype("<f4").tobytes()


def _turned(rotations: Tensor) -> Tensor:
    """Quaternions (N, 4) w first, from the world's axes to the file's: the product with that of the rotation."""
    w, x, y, z = _QUATERNION
    product = rotations.new_tensor([[w, -x, -y, -z], [x, w, -z, y], [y, z, w, -x], [z, -y, x, w]])
    return rotations @ product.T
