from .base import RaySamples as RaySamples
from .base import Render as Render
from .base import Renderer as Renderer
from .splat import SplatRenderer as SplatRenderer
from .volume import VolumeRenderer as VolumeRenderer
