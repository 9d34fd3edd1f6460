"""How a scene becomes an image."""

from carv3d.renderers.base import RaySamples, Render, Renderer
from carv3d.renderers.splat import SplatRenderer
from carv3d.renderers.volume import VolumeRenderer

__all__ = ["RaySamples", "Render", "Renderer", "SplatRenderer", "VolumeRenderer"]
