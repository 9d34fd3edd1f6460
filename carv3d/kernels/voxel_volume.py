"""Volume rendering of a voxel grid in one pass, forward and backward, on the CPU.

`VoxelGrid.query` and `renderers.compositing` do the same in torch, sample by sample in memory. Here a sample's values
stay in registers: memory is per ray. Samples in empty cells are skipped, and a ray ends where it is opaque. Differences
from torch are below `OPAQUE`.
"""

# numba types the arguments of a compiled function.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from carv3d.kernels.arithmetic import expm1, f4, sigmoid, softplus
from carv3d.kernels.jit import PARTS, compiled, inlined, run

if TYPE_CHECKING:
    from carv3d.renderers.rays import Rays

OPAQUE = 1e-4
"""A ray ends where less light than this passes."""
FAINT = 1e-3
"""Samples that add no more than this to their pixel have no normal, which costs six densities."""

SUMS, NORMAL = 5, 3  # of a ray: rgb, opacity, opacity times distance; and the normal


class Activation(NamedTuple):
    """From the first logit v at a point p to its density: `scale * softplus(v + height (1 - |p| / radius))`.

    Attributes:
        bound: half the cube's side, world units.
        scale: of the density, per world unit.
        height, radius: of the blob; see `carv3d.scenes.base.blob`.
    """

    bound: float
    scale: float
    height: float
    radius: float


BLOCK = 32  # samples whose values are computed together, with vector instructions


@inlined
def _corner(n, bound, x):
    """Index of the lower corner along an axis of n corners, and the share of the upper one."""
    where = min(max((x / bound + f4(1)) * f4(0.5) * f4(n - 1), f4(0)), f4(n - 1))
    low = min(int(where), n - 2)
    return low, where - f4(low)


@inlined
def _at(n, bound, x, y, z):
    """Offset of the lowest corner of a point's cell in the flat grid, and the weights of its eight corners."""
    i, u = _corner(n, bound, x)
    j, v = _corner(n, bound, y)
    k, w = _corner(n, bound, z)
    low_u, low_v, low_w = f4(1) - u, f4(1) - v, f4(1) - w
    a, b, c, d = low_u * low_v, low_u * v, u * low_v, u * v
    weights = a * low_w, a * w, b * low_w, b * w, c * low_w, c * w, d * low_w, d * w
    return np.uint64(4 * ((i * n + j) * n + k)), weights


@inlined
def _corner_values(grid, offset, weight, sums):
    """Add a corner's four channels, weighted."""
    a = sums[0] + weight * grid[offset]
    b = sums[1] + weight * grid[offset + np.uint64(1)]
    c = sums[2] + weight * grid[offset + np.uint64(2)]
    d = sums[3] + weight * grid[offset + np.uint64(3)]
    return a, b, c, d


@inlined
def _values(grid, n, offset, weights):
    """All four channels of the grid between eight corners; grid is flat."""
    z, y, x = np.uint64(4), np.uint64(4 * n), np.uint64(4 * n * n)
    sums = f4(0), f4(0), f4(0), f4(0)
    sums = _corner_values(grid, offset, weights[0], sums)
    sums = _corner_values(grid, offset + z, weights[1], sums)
    sums = _corner_values(grid, offset + y, weights[2], sums)
    sums = _corner_values(grid, offset + y + z, weights[3], sums)
    sums = _corner_values(grid, offset + x, weights[4], sums)
    sums = _corner_values(grid, offset + x + z, weights[5], sums)
    sums = _corner_values(grid, offset + x + y, weights[6], sums)
    return _corner_values(grid, offset + x + y + z, weights[7], sums)


@inlined
def _add(grid, offset, weight, values):
    """Add four channels, weighted, to a corner."""
    a = grid[offset] + weight * values[0]
    b = grid[offset + np.uint64(1)] + weight * values[1]
    c = grid[offset + np.uint64(2)] + weight * values[2]
    d = grid[offset + np.uint64(3)] + weight * values[3]
    grid[offset], grid[offset + np.uint64(1)], grid[offset + np.uint64(2)], grid[offset + np.uint64(3)] = a, b, c, d


@inlined
def _first_value(grid, n, offset, weights):
    """The first channel alone."""
    o, z, y, x = offset, np.uint64(4), np.uint64(4 * n), np.uint64(4 * n * n)
    low = weights[0] * grid[o] + weights[1] * grid[o + z] + weights[2] * grid[o + y] + weights[3] * grid[o + y + z]
    o += x
    high = weights[4] * grid[o] + weights[5] * grid[o + z] + weights[6] * grid[o + y] + weights[7] * grid[o + y + z]
    return low + high


@inlined
def _blob(height, radius, x, y, z):
    """See `carv3d.scenes.base.blob`."""
    return height * (f4(1) - math.sqrt(x * x + y * y + z * z + f4(1e-12)) / radius)


@inlined
def _inside(bound, x, y, z):
    return max(max(abs(x), abs(y)), abs(z)) <= bound


@inlined
def _kept(occupied, cells, bound, x, y, z):
    """Whether a point lies in the cube and in an occupied cell; occupied is flat, of cells^3."""
    if not _inside(bound, x, y, z):
        return False
    scale = f4(0.5) * f4(cells) / bound
    i = min(int((x + bound) * scale), cells - 1)
    j = min(int((y + bound) * scale), cells - 1)
    k = min(int((z + bound) * scale), cells - 1)
    return occupied[np.uint64((i * cells + j) * cells + k)]


@inlined
def _density(grid, n, activation, x, y, z):
    """The density at a point, per world unit; grid is flat."""
    bound, scale, height, radius = activation
    if not _inside(bound, x, y, z):
        return f4(0)
    offset, weights = _at(n, bound, x, y, z)
    return scale * softplus(_first_value(grid, n, offset, weights) + _blob(height, radius, x, y, z))


@inlined
def _activate(block, scale):
    """From logits to opacities and colours, of the whole block: what is not filled is not used."""
    for m in range(BLOCK):
        block[1, m] = scale * softplus(block[6, m])
        block[2, m] = -expm1(-block[1, m])
        block[3, m] = sigmoid(block[3, m])
        block[4, m] = sigmoid(block[4, m])
        block[5, m] = sigmoid(block[5, m])


@inlined
def _sample(block, grid, n, occupied, cells, activation, ray, length, samples, s):
    """Fill a block with the values of the next samples that are kept, from sample s on.

    Its rows: distance, thickness, opacity, rgb; the logit of the density. Returns their number, and the next sample.
    """
    bound, scale, height, radius = activation
    ox, oy, oz, dx, dy, dz, start = ray
    count = 0
    while s < samples and count < BLOCK:
        t = start + f4(s) * length
        x, y, z = ox + t * dx, oy + t * dy, oz + t * dz
        s += 1
        if _kept(occupied, cells, bound, x, y, z):
            offset, weights = _at(n, bound, x, y, z)
            block[0, count] = t
            logit, red, green, blue = _values(grid, n, offset, weights)
            block[6, count] = logit + _blob(height, radius, x, y, z)
            block[3, count], block[4, count], block[5, count] = red, green, blue
            count += 1
    _activate(block, length * scale)
    return count, s


@compiled
def _forward(part, parts, grid, n, occupied, cells, origins, directions, first, length, samples, activation, step, out):
    """Sums along every `parts`-th ray, into out (rays, SUMS [+ NORMAL]); the normals' step is 0 for none."""
    block = np.zeros((7, BLOCK), np.float32)
    for r in range(part, len(first), parts):
        red, green, blue, opacity, distance = f4(0), f4(0), f4(0), f4(0), f4(0)
        nx, ny, nz = f4(0), f4(0), f4(0)
        dx, dy, dz = directions[r, 0], directions[r, 1], directions[r, 2]
        ray = origins[r, 0], origins[r, 1], origins[r, 2], dx, dy, dz, first[r]
        passing, s = f4(1), 0 if length[r] > 0 else samples
        while s < samples and not passing < f4(OPAQUE):
            count, s = _sample(block, grid, n, occupied, cells, activation, ray, length[r], samples, s)
            for m in range(count):
                weight = passing * block[2, m]
                passing -= weight
                red += weight * block[3, m]
                green += weight * block[4, m]
                blue += weight * block[5, m]
                opacity += weight
                distance += weight * block[0, m]
                if step > 0 and weight > f4(FAINT):
                    t = block[0, m]
                    x, y, z = ray[0] + t * dx, ray[1] + t * dy, ray[2] + t * dz
                    a = _density(grid, n, activation, x + step, y, z) - _density(grid, n, activation, x - step, y, z)
                    b = _density(grid, n, activation, x, y + step, z) - _density(grid, n, activation, x, y - step, z)
                    c = _density(grid, n, activation, x, y, z + step) - _density(grid, n, activation, x, y, z - step)
                    size = max(math.sqrt(a * a + b * b + c * c), f4(2e-4) * step)
                    nx -= weight * a / size
                    ny -= weight * b / size
                    nz -= weight * c / size
                if passing < f4(OPAQUE):
                    break
        out[r, 0], out[r, 1], out[r, 2], out[r, 3], out[r, 4] = red, green, blue, opacity, distance
        if step > 0:
            out[r, 5], out[r, 6], out[r, 7] = nx, ny, nz


@compiled
def _backward(
    part, parts, grid, n, occupied, cells, origins, directions, first, length, samples, activation, out, grads, found
):
    """Add the gradient of the sums along every `parts`-th ray to found, which is flat as the grid."""
    bound = activation[0]
    scale = activation[1]
    block = np.zeros((7, BLOCK), np.float32)
    z_step, y_step, x_step = np.uint64(4), np.uint64(4 * n), np.uint64(4 * n * n)
    for r in range(part, len(first), parts):
        g0, g1, g2, g3, g4 = grads[r, 0], grads[r, 1], grads[r, 2], grads[r, 3], grads[r, 4]
        dx, dy, dz = directions[r, 0], directions[r, 1], directions[r, 2]
        ray = origins[r, 0], origins[r, 1], origins[r, 2], dx, dy, dz, first[r]
        # The gradient times what lies behind a sample: at first everything.
        behind = g0 * out[r, 0] + g1 * out[r, 1] + g2 * out[r, 2] + g3 * out[r, 3] + g4 * out[r, 4]
        passing, s = f4(1), 0 if length[r] > 0 else samples
        while s < samples and not passing < f4(OPAQUE):
            count, s = _sample(block, grid, n, occupied, cells, activation, ray, length[r], samples, s)
            used = 0
            for m in range(count):
                weight = passing * block[2, m]
                passing -= weight
                red, green, blue = block[3, m], block[4, m], block[5, m]
                here = g0 * red + g1 * green + g2 * blue + g3 + g4 * block[0, m]
                behind -= weight * here
                block[1, m] = length[r] * (passing * here - behind)
                block[3, m] = weight * g0 * red * (f4(1) - red)
                block[4, m] = weight * g1 * green * (f4(1) - green)
                block[5, m] = weight * g2 * blue * (f4(1) - blue)
                used += 1
                if passing < f4(OPAQUE):
                    break
            for m in range(BLOCK):
                block[1, m] *= scale * sigmoid(block[6, m])
            for m in range(used):
                t = block[0, m]
                offset, weights = _at(n, bound, ray[0] + t * dx, ray[1] + t * dy, ray[2] + t * dz)
                values = block[1, m], block[3, m], block[4, m], block[5, m]
                _add(found, offset, weights[0], values)
                _add(found, offset + z_step, weights[1], values)
                _add(found, offset + y_step, weights[2], values)
                _add(found, offset + y_step + z_step, weights[3], values)
                _add(found, offset + x_step, weights[4], values)
                _add(found, offset + x_step + z_step, weights[5], values)
                _add(found, offset + x_step + y_step, weights[6], values)
                _add(found, offset + x_step + y_step + z_step, weights[7], values)


class _Composite(torch.autograd.Function):
    """Differentiable in the grid."""

    @staticmethod
    def forward(
        ctx: Any, grid: Tensor, occupied: Tensor, samples: int, activation: Activation, step: float, *rays: Tensor
    ) -> Tensor:
        constants = tuple(f4(value) for value in activation)
        cells = _flat(occupied), len(occupied)
        lines = tuple(tensor.detach().contiguous().numpy() for tensor in rays)
        inputs = (_flat(grid.detach()[0].permute(1, 2, 3, 0)), grid.shape[-1], *cells, *lines, samples, constants)
        out = np.empty((len(rays[-1]), SUMS + NORMAL * (step > 0)), np.float32)
        run(_forward, [(part, PARTS, *inputs, f4(step), out) for part in range(PARTS)])
        ctx.inputs, ctx.out, ctx.shape = inputs, out, grid.shape
        return torch.from_numpy(out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        found, wanted = np.zeros((PARTS, len(ctx.inputs[0])), np.float32), grads[0].contiguous().numpy()
        run(_backward, [(part, PARTS, *ctx.inputs, ctx.out, wanted, found[part]) for part in range(PARTS)])
        _, channels, *sides = ctx.shape
        total = torch.from_numpy(found).sum(0).view(*sides, channels).permute(3, 0, 1, 2)[None]
        return (total, *[None] * 8)


def _flat(values: Tensor) -> np.ndarray[Any, Any]:
    """In the order of the indices; a copy if they are not so in memory."""
    return values.contiguous().numpy().reshape(-1)


def composite(grid: Tensor, activation: Activation, occupied: Tensor, rays: Rays, *, normal_step: float = 0) -> Tensor:
    """Sums along rays: what `RadianceField.composite` describes.

    Args:
        grid: (1, 4, n, n, n) float32 on the CPU, logits of density and rgb.
        activation: from logits to densities.
        occupied: (m, m, m) bool.
        rays: N of them.
        normal_step: over which normals are differences, world units; 0: no normals.
    """
    lines = rays.origins, rays.directions, rays.first, rays.length
    found: Tensor = _Composite.apply(grid, occupied, rays.samples, activation, normal_step, *lines)
    return found
