"""How a scene becomes an image."""

from carv3d.renderers.base import RaySamples, Render
from carv3d.renderers.volume import VolumeRenderer

__all__ = ["RaySamples", "Render", "VolumeRenderer"]
