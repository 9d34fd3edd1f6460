"""Gaussians as a .ply in the layout of Kerbl et al. 2023, which splat viewers open."""

from __future__ import annotations

import torch

from carv3d.scenes.gaussian_cloud import GaussianCloud


@torch.no_grad()
def to_ply(scene: GaussianCloud) -> bytes:
    """A scene as a little-endian .ply file, a vertex a Gaussian.

    Columns are x y z, nx ny nz, f_dc_*, f_rest_*, opacity, scale_*, rot_*: world units and the world's axes (z up),
    normals 0, harmonics all of red before green before blue, opacities as logits, scales as logarithms of standard
    deviations, unit quaternions w first.
    """
    n = len(scene)
    rest = scene.harmonics.mT.reshape(n, -1) if scene.degree else scene.colours.new_zeros(n, 0)
    columns = {
        "x y z": scene.positions,
        "nx ny nz": torch.zeros_like(scene.positions),
        "f_dc_0 f_dc_1 f_dc_2": scene.colours,
        " ".join(f"f_rest_{i}" for i in range(rest.shape[1])): rest,
        "opacity": scene.opacity_logits[:, None],
        "scale_0 scale_1 scale_2": scene.log_scales,
        "rot_0 rot_1 rot_2 rot_3": torch.nn.functional.normalize(scene.rotations, dim=-1),
    }
    properties = [f"property float {name}" for names in columns for name in names.split()]
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {n}", *properties, "end_header", ""]
    table = torch.cat(list(columns.values()), 1).cpu().numpy()
    return "\n".join(header).encode("ascii") + table.astype("<f4").tobytes()
