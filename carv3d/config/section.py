"""What the sections of a config that describe a component have in common. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from carv3d import registry
from carv3d.config.rules import Rule

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Context:
    """What a component may need to be built besides its own keys.

    Attributes:
        config: the whole one.
        device: of the run.
        rng: draws a start; on the device.
        fresh: False if a checkpoint will be loaded into the component: then no file that a run starts from is read.
    """

    config: Any
    device: torch.device
    rng: torch.Generator
    fresh: bool = True


class Section:
    """A dataclass whose fields are the keys of a component. A plug-in has `build` alone; this class is not needed.

    Attributes:
        implementation: `module:class` of what `build` makes.
    """

    implementation: ClassVar[str]

    def keys(self) -> dict[str, Any]:
        """The values, `type` apart."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "type"}  # type: ignore[arg-type]

    def build(self, context: Context) -> Any:
        """Make the component."""
        return registry.load(self.implementation)(**self.keys(), **self.extra(context))

    def extra(self, context: Context) -> dict[str, Any]:
        """Arguments of the component besides the section's keys."""
        return {}

    def rules(self, prefix: str) -> Iterable[Rule]:
        """Rules on the keys, see `carv3d.config.rules`."""
        return ()
