"""A multiresolution hash grid with a small MLP, in plain torch; encoded by one kernel where that works."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from carv3d.kernels import hash_grid as numba_kernel
from carv3d.scenes import fused_hash_grid
from carv3d.scenes.base import ImageProjection, RadianceField, blob, inside
from carv3d.scenes.config import HashGridConfig
from carv3d.system.transfer import constant

# Müller et al., "Instant neural graphics primitives with a multiresolution hash encoding", 2022, section 3.
_PRIMES = (1, 2_654_435_761, 805_459_861)
_CHUNK = 1 << 16  # points hashed at once: bounds the memory of large images
_TV_POINTS = 1024
# Generator of the R3 low-discrepancy sequence: powers of the inverse of the root of x^4 = x + 1.
_R3 = tuple(1.2207440846057596**-k for k in (1, 2, 3))


class _WeightedSum(torch.autograd.Function):
    """(M, F) = sum over k of weights[:, k] * table[index[:, k]], differentiable in the table only.

    `embedding_bag` is the fused gather; its own backward sorts the indices and is 5 times slower on CPU than
    adding.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(index, weights)
        ctx.rows = len(table)
        return F.embedding_bag(index, table, per_sample_weights=weights, mode="sum")

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        index, weights = ctx.saved_tensors
        columns = [
            grads[0].new_zeros(ctx.rows).index_add_(0, index.reshape(-1), (weights * column[:, None]).reshape(-1))
            for column in grads[0].unbind(1)
        ]
        return torch.stack(columns, 1), None, None


class HashGrid(RadianceField):
    """Instant-NGP's field (Müller et al. 2022): ever finer feature grids in hash tables, and a small MLP.

    Levels whose grid fits in a table are indexed densely, without collisions. Density is `softplus(MLP +
    blob)`.

    Args:
        config: bound, grids, MLP, and the initial blob, see `carv3d.scenes.base.blob`.
        generator: draws the initial tables and weights; on the scene's device.
    """

    cells: Tensor
    starts: Tensor
    corners: Tensor
    tv_start: Tensor

    def __init__(self, config: HashGridConfig, generator: torch.Generator) -> None:
        # Gradients at the finest cells are noise; a hundredth of the cube's half side is what a 128^3 mesh
        # resolves.
        super().__init__(bound=config.bound, normal_step=0.01 * config.bound)
        self.config = config
        levels, features = config.levels, config.features
        device = generator.device
        growth = (config.finest_resolution / config.base_resolution) ** (1 / max(levels - 1, 1))
        cells = [int(config.base_resolution * growth**level + 1e-6) for level in range(levels)]
        entries = 1 << config.log2_table
        sizes = [min((n + 1) ** 3, entries) for n in cells]
        dense = sum((n + 1) ** 3 <= entries for n in cells)
        starts = [sum(sizes[:level]) for level in range(levels)]
        self.table_mask = entries - 1
        self.dense_levels = dense
        self.register_buffer("cells", torch.tensor(cells, device=device), persistent=False)
        self.register_buffer("starts", torch.tensor(starts, device=device), persistent=False)
        corners = [(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)]
        self.register_buffer("corners", torch.tensor(corners, device=device), persistent=False)
        self.register_buffer("tv_start", torch.zeros((), dtype=torch.int64, device=device))

        table = torch.empty(sum(sizes), features, device=device)
        self.table = torch.nn.Parameter(table.uniform_(-1e-4, 1e-4, generator=generator))
        widths = [levels * features, *[config.hidden] * config.layers, 4]
        self.weights = torch.nn.ParameterList()
        self.biases = torch.nn.ParameterList()
        for fan_in, fan_out in pairwise(widths):
            limit = math.sqrt(6 / fan_in)  # He initialisation
            weight = torch.empty(fan_out, fan_in, device=device).uniform_(-limit, limit, generator=generator)
            self.weights.append(torch.nn.Parameter(weight))
            self.biases.append(torch.nn.Parameter(torch.zeros(fan_out, device=device)))

    def encode(self, points: Tensor, *, fused: bool = True) -> Tensor:
        """Features (N, levels * features) at points (N, 3); points outside the cube take its face's.

        Args:
            points: world units.
            fused: by one kernel where that works; False: by torch.
        """
        unit = (points / self.bound * 0.5 + 0.5).clamp(0, 1)
        layout = self.cells, self.starts, self.table_mask, self.dense_levels
        if fused and self.table.dtype == torch.float32:
            for kernel in (fused_hash_grid, numba_kernel):
                if kernel.problem(self.table.device) is None:
                    return kernel.encode(self.table, unit.float(), *layout)
        return torch.cat([self._encode(part) for part in torch.split(unit, _CHUNK)])

    def _encode(self, unit: Tensor) -> Tensor:
        cells = self.cells
        scaled = unit[:, None] * cells[:, None]  # (N, L, 3)
        low = torch.minimum(scaled.floor().long(), cells[:, None] - 1)
        fraction = scaled - low
        # All levels at once: on a GPU the number of kernels determines the time.
        corner = low[:, :, None] + self.corners  # (N, L, 8, 3)
        x, y, z = corner.unbind(-1)
        side = cells[: self.dense_levels, None] + 1
        d = self.dense_levels
        flat = (x[:, :d] * side + y[:, :d]) * side + z[:, :d]
        hashed = (x[:, d:] * _PRIMES[0]) ^ (y[:, d:] * _PRIMES[1]) ^ (z[:, d:] * _PRIMES[2])
        index = torch.cat([flat, hashed & self.table_mask], 1) + self.starts[:, None]
        weights = torch.where(self.corners.bool(), fraction[:, :, None], 1 - fraction[:, :, None]).prod(-1)
        found: Tensor = _WeightedSum.apply(self.table, index.view(-1, 8), weights.view(-1, 8))
        return found.view(len(unit), -1)

    def _logits(self, points: Tensor) -> Tensor:
        hidden = self.encode(points)
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = F.linear(hidden.relu() if layer else hidden, weight, bias)
        # Under autocast the MLP runs in half precision; the rest must not.
        return hidden.to(points.dtype)

    def query(self, points: Tensor) -> tuple[Tensor, Tensor]:
        logits = self._logits(points)
        density = F.softplus(logits[:, 0] + blob(points, self.config.blob_density, self.config.blob_std))
        return density * inside(points, self.bound), logits[:, 1:].sigmoid()

    def total_variation(self) -> Tensor:
        """Mean squared difference of logits `normal_step` apart, summed over the axes; scalar.

        At 1,024 points of a low-discrepancy sequence that moves on with every step: it covers the cube
        without drawing random numbers.
        """
        order = torch.arange(1, _TV_POINTS + 1, device=self.table.device) + self.tv_start
        unit = (order[:, None] * constant(order.double(), *_R3)).frac().to(self.table.dtype)
        points = (2 * unit - 1) * (self.bound - self.normal_step)
        moved = points + self.normal_step * torch.eye(3, dtype=points.dtype, device=points.device)[:, None]
        values = self._logits(torch.cat([points[None], moved]).view(-1, 3)).view(4, -1, 4)
        return (values[1:] - values[0]).square().mean((1, 2)).sum()

    def parameter_groups(self, lr: float, progress: float = 0.0) -> list[dict[str, Any]]:
        # The table's entries have tiny, rare gradients: Müller et al. use this eps. The MLP learns ten times
        # slower.
        network = [*self.weights, *self.biases]
        return [{"params": [self.table], "lr": lr, "eps": 1e-15}, {"params": network, "lr": 0.1 * lr}]

    def after_step(
        self, step: int, progress: float, projection: ImageProjection | None, generator: torch.Generator
    ) -> None:
        self.tv_start.fill_(_TV_POINTS * (step + 1))
