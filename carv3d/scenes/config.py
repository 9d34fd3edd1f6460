"""The configs of carv3d's scenes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from carv3d.config.components import Context
from carv3d.config.keys import Key
from carv3d.config.linear_schedule import LinearSchedule, constant
from carv3d.config.values import Rule

if TYPE_CHECKING:
    from carv3d.scenes.gaussians import Gaussians
    from carv3d.scenes.hash_grid import HashGrid
    from carv3d.scenes.voxel_grid import VoxelGrid

Bound = Annotated[float, Key("half side of the cube that holds the object, world units", gt=0)]


@dataclass
class FieldConfig:
    """What the configs of fields share. A field has a density and a colour at every point.

    Attributes:
        renderer: which one draws it, by the registry's name.
        mesh_formats: that it can be exported in.
        penalties: the keys of `regularisers` that it has a term for, besides those that every scene has.
    """

    renderer: ClassVar[str] = "volume"
    mesh_formats: ClassVar[tuple[str, ...]] = ("glb", "obj", "ply")
    penalties: ClassVar[tuple[str, ...]] = ("orientation", "total_variation")

    bound: Bound = 1.0
    blob_density: Annotated[float, Key("height of the initial blob, before the activation", ge=0)] = 5.0
    blob_std: Annotated[float, Key("radius of the initial blob, world units", gt=0)] = 0.5


@dataclass
class VoxelGridConfig(FieldConfig):
    """A dense grid of density and colour."""

    type: Literal["voxel_grid"] = "voxel_grid"
    resolution: Annotated[int, Key("grid points along a side", ge=2, le=512)] = 48
    density_scale: Annotated[float, Key("density per unit of softplus(parameter), per world unit", gt=0)] = 6.0

    def build(self, context: Context) -> VoxelGrid:
        """The scene at its start."""
        from carv3d.scenes.voxel_grid import VoxelGrid

        return VoxelGrid(self, context.rng)


@dataclass
class HashGridConfig(FieldConfig):
    """A multiresolution hash grid with a small MLP (Instant-NGP)."""

    type: Literal["hash_grid"] = "hash_grid"
    levels: Annotated[int, Key("number of grids", ge=1, le=64)] = 16
    features: Annotated[int, Key("per level", ge=1, le=16)] = 2
    log2_table: Annotated[int, Key("log2 of the entries per level", ge=1, le=28)] = 19
    base_resolution: Annotated[int, Key("cells along a side at the coarsest level", ge=1, le=4_096)] = 16
    finest_resolution: Annotated[int, Key("cells along a side at the finest level", ge=1, le=1_048_576)] = 2048
    hidden: Annotated[int, Key("width of the MLP", ge=1, le=4_096)] = 64
    layers: Annotated[int, Key("hidden layers of the MLP", ge=1, le=64)] = 1
    blob_density: Annotated[float, Key("height of the initial blob, before the activation", ge=0)] = 10.0

    def build(self, context: Context) -> HashGrid:
        """The scene at its start."""
        from carv3d.scenes.hash_grid import HashGrid

        return HashGrid(self, context.rng).to(context.device)

    def rules(self, prefix: str) -> Iterator[Rule]:
        """Levels become finer."""
        base, finest = self.base_resolution, self.finest_resolution
        yield f"{prefix}.finest_resolution", finest, finest >= base, f"at least {prefix}.base_resolution ({base})"


@dataclass
class DensificationConfig:
    """When Gaussians are added and removed, and which."""

    every: Annotated[int, Key("steps between two densifications; 0: never", ge=0, le=100_000_000)] = 50
    begin: Annotated[float, Key("first moment of densification, fraction of the run", ge=0, le=1)] = 0.1
    end: Annotated[float, Key("last moment, fraction of the run", ge=0, le=1)] = 0.7
    gradient: Annotated[
        float, Key("densified: mean gradient on the image above this many times the mean of all Gaussians", ge=0)
    ] = 2.0
    split_scale: Annotated[
        float, Key("larger ones are split, others cloned; largest std, share of the bound", gt=0)
    ] = 0.05
    most: Annotated[int, Key("largest number of Gaussians", ge=1, le=100_000_000)] = 10000
    # A reset goes to twice the threshold, and that must be an opacity.
    prune_opacity: Annotated[float, Key("fainter ones are removed", ge=0, lt=0.5)] = 0.02
    prune_scale: Annotated[float, Key("larger ones are removed; largest std, share of the bound", gt=0)] = 0.5
    reset_every: Annotated[
        int, Key("steps between two resets of the opacities to twice prune_opacity; 0: never", ge=0)
    ] = 0

    def rules(self, prefix: str) -> Iterator[Rule]:
        """The moments are in order."""
        ends = [self.begin, self.end]
        yield f"{prefix}.begin and .end", ends, self.begin <= self.end, "in order and from 0 to 1"


Share = Annotated[LinearSchedule, Key("share of optimizer.lr", ge=0)]


@dataclass
class GaussiansConfig:
    """A cloud of 3-D Gaussians (splats)."""

    renderer: ClassVar[str] = "splat"
    mesh_formats: ClassVar[tuple[str, ...]] = ("glb", "obj", "ply", "splat")
    penalties: ClassVar[tuple[str, ...]] = ("gaussian_opacity", "gaussian_scale", "gaussian_position")

    type: Literal["gaussians"] = "gaussians"
    bound: Bound = 1.0
    points: Annotated[str, Key('a .ply point cloud to start from; "": points of a ball')] = ""
    count: Annotated[int, Key("points of the ball", ge=1, le=10_000_000)] = 2000
    radius: Annotated[float, Key("of the ball, world units", gt=0)] = 0.5
    spread: Annotated[float, Key("initial std, share of the distance to the nearest points", gt=0)] = 1.0
    opacity: Annotated[float, Key("initial", gt=0, lt=1)] = 0.1
    degree: Annotated[int, Key("of the spherical harmonics: how colour depends on the direction", ge=0, le=3)] = 0
    lr_position: Share = constant(0.1)
    lr_scale: Annotated[LinearSchedule, Key("of the logarithms of the stds; share of optimizer.lr", ge=0)] = constant(
        0.15
    )
    lr_rotation: Annotated[LinearSchedule, Key("of the quaternions; share of optimizer.lr", ge=0)] = constant(0.15)
    lr_opacity: Annotated[LinearSchedule, Key("of the logits; share of optimizer.lr", ge=0)] = constant(1.0)
    lr_colour: Annotated[LinearSchedule, Key("share of optimizer.lr; harmonics get 1/20 of it", ge=0)] = constant(1.0)
    densify: DensificationConfig = field(default_factory=DensificationConfig)

    def build(self, context: Context) -> Gaussians:
        """The scene at its start; before a checkpoint is loaded, one Gaussian."""
        from carv3d.scenes.gaussians import Gaussians

        return Gaussians(self if context.fresh else replace(self, points="", count=1), context.rng)

    def shortened(self, share: float) -> GaussiansConfig:
        """For a run of `share` times as many steps that shall reach as many Gaussians."""
        return replace(self, densify=replace(self.densify, every=math.ceil(share * self.densify.every)))

    def rules(self, prefix: str) -> Iterator[Rule]:
        """The ball lies in the cube."""
        yield f"{prefix}.radius", self.radius, self.radius <= self.bound, f"at most scene.bound ({self.bound:g})"
