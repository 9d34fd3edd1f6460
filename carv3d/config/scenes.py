"""The sections of the kinds of scene."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, ClassVar, Literal

from carv3d.config.ramp import Ramp, constant
from carv3d.config.rules import Rule, at_least, positive
from carv3d.config.section import Context, Section


class FieldSection(Section):
    """A section of a scene that is a field: a density and a colour at every point.

    Attributes:
        renderer: which one draws it, by the registry's name.
        mesh_formats: that it can be exported in.
        penalties: the keys of `regularisers` that it has a term for, besides those that every scene has.
    """

    renderer: ClassVar[str] = "volume"
    mesh_formats: ClassVar[tuple[str, ...]] = ("glb", "obj", "ply")
    penalties: ClassVar[tuple[str, ...]] = ("orientation", "total_variation")

    def build(self, context: Context) -> Any:
        """See `Section`."""
        return super().build(context).to(context.device)

    def extra(self, context: Context) -> dict[str, Any]:
        """See `Section`."""
        return {"generator": context.rng}

    def rules(self, prefix: str) -> Iterator[Rule]:
        """See `Section`."""
        yield from positive(self, prefix, "bound", "blob_std")
        yield from at_least(self, prefix, blob_density=0)


@dataclass
class VoxelGrid(FieldSection):
    """A dense grid of density and colour."""

    type: Literal["voxel_grid"] = "voxel_grid"
    bound: float = 1.0  # half side of the cube that holds the object, world units
    resolution: int = 48  # grid points along a side
    density_scale: float = 6.0  # density per unit of softplus(parameter), per world unit
    blob_density: float = 5.0  # height of the initial blob, in parameter units
    blob_std: float = 0.5  # its radius, world units

    implementation: ClassVar[str] = "carv3d.scenes:VoxelGrid"

    def rules(self, prefix: str) -> Iterator[Rule]:
        """See `Section`."""
        yield from super().rules(prefix)
        yield from at_least(self, prefix, resolution=2)
        yield from positive(self, prefix, "density_scale")


@dataclass
class HashGrid(FieldSection):
    """A multiresolution hash grid with a small MLP (Instant-NGP)."""

    type: Literal["hash_grid"] = "hash_grid"
    bound: float = 1.0  # half side of the cube that holds the object, world units
    levels: int = 16
    features: int = 2  # per level
    log2_table: int = 19  # log2 of the entries per level
    base_resolution: int = 16  # cells along a side at the coarsest level
    finest_resolution: int = 2048  # cells along a side at the finest level
    hidden: int = 64  # width of the MLP
    layers: int = 1  # hidden layers of the MLP
    blob_density: float = 10.0  # height of the initial blob, in pre-activation units
    blob_std: float = 0.5  # its radius, world units

    implementation: ClassVar[str] = "carv3d.scenes:HashGrid"

    def rules(self, prefix: str) -> Iterator[Rule]:
        """See `Section`."""
        yield from super().rules(prefix)
        yield from at_least(self, prefix, levels=1, features=1, base_resolution=1, hidden=1, layers=1)
        yield from at_least(self, prefix, finest_resolution=self.base_resolution)
        yield f"{prefix}.log2_table", self.log2_table, 1 <= self.log2_table <= 28, "from 1 to 28"


@dataclass
class Densification:
    """When Gaussians are added and removed, and which."""

    every: int = 50  # steps between two times; 0: never
    begin: float = 0.1  # part of the run in which it happens, fractions
    end: float = 0.7
    gradient: float = 2.0  # densified: mean gradient on the image above this many times the mean of all Gaussians
    split_scale: float = 0.05  # above this size they are split, else cloned; largest std, share of the bound
    most: int = 10000  # Gaussians there may be
    prune_opacity: float = 0.02  # fainter ones are removed
    prune_scale: float = 0.5  # larger ones are removed; largest std, share of the bound
    reset_every: int = 0  # steps between two resets of the opacities to twice prune_opacity; 0: never

    def rules(self, prefix: str) -> Iterator[Rule]:
        """See `Section`."""
        yield from at_least(self, prefix, every=0, gradient=0, most=1, reset_every=0)
        yield from positive(self, prefix, "split_scale", "prune_scale")
        inside = 0 <= self.begin <= self.end <= 1
        yield f"{prefix}.begin and .end", [self.begin, self.end], inside, "in order and from 0 to 1"
        # A reset goes to twice the threshold, and that must be an opacity.
        yield f"{prefix}.prune_opacity", self.prune_opacity, 0 <= self.prune_opacity < 0.5, "from 0 up to 1/2"


@dataclass
class Gaussians(Section):
    """A cloud of 3-D Gaussians (splats)."""

    type: Literal["gaussians"] = "gaussians"
    bound: float = 1.0  # half side of the cube that holds the object, world units
    points: str = ""  # a .ply point cloud to start from; "": points of a ball
    count: int = 2000  # points of the ball
    radius: float = 0.5  # its radius, world units
    spread: float = 1.0  # initial std, share of the distance to the nearest points
    opacity: float = 0.1  # initial
    degree: int = 0  # of the spherical harmonics, 0 to 3: how colour depends on the direction
    lr_position: Ramp = field(default_factory=lambda: constant(0.1))  # shares of optimizer.lr
    lr_scale: Ramp = field(default_factory=lambda: constant(0.15))  # of the logarithms of the stds
    lr_rotation: Ramp = field(default_factory=lambda: constant(0.15))  # of the quaternions
    lr_opacity: Ramp = field(default_factory=lambda: constant(1.0))  # of the logits
    lr_colour: Ramp = field(default_factory=lambda: constant(1.0))  # of colours; 1/20 of it for harmonics
    densify: Densification = field(default_factory=Densification)

    renderer: ClassVar[str] = "splat"
    mesh_formats: ClassVar[tuple[str, ...]] = ("glb", "obj", "ply", "splat")
    penalties: ClassVar[tuple[str, ...]] = ("gaussian_opacity", "gaussian_scale", "gaussian_position")

    def build(self, context: Context) -> Any:
        """See `Section`."""
        from carv3d.scenes.densification import Densification
        from carv3d.scenes.gaussians import Gaussians

        arguments = self.keys() | {"densify": Densification(**asdict(self.densify))}
        if not context.fresh:
            arguments |= {"points": "", "count": 1}
        return Gaussians(**arguments, generator=context.rng)

    def shortened(self, share: float) -> Gaussians:
        """For a run of `share` times as many steps, in which there are to be as many Gaussians."""
        return replace(self, densify=replace(self.densify, every=math.ceil(share * self.densify.every)))

    def rules(self, prefix: str) -> Iterator[Rule]:
        """See `Section`."""
        yield from positive(self, prefix, "bound", "radius", "spread")
        yield from at_least(self, prefix, count=1)
        yield f"{prefix}.radius", self.radius, self.radius <= self.bound, f"at most scene.bound ({self.bound:g})"
        yield f"{prefix}.opacity", self.opacity, 0 < self.opacity < 1, "between 0 and 1"
        yield f"{prefix}.degree", self.degree, 0 <= self.degree <= 3, "from 0 to 3"
        for key in (f.name for f in fields(self) if f.name.startswith("lr_")):
            share = getattr(self, key)
            yield f"{prefix}.{key}", share, min(share.first, share.last) >= 0, "at least 0"
        yield from self.densify.rules(f"{prefix}.densify")
