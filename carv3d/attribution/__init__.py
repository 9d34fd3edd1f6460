"""Which training pictures made a sample: gradients of the diffusion loss compared over shared (t, eps)."""

from carv3d.attribution.attribution import Attributed, attribute
from carv3d.attribution.draws import SharedDraws
from carv3d.attribution.gradients import RowGradients
from carv3d.attribution.projection import Projection
from carv3d.attribution.scores import ends, scores

__all__ = ["Attributed", "Projection", "RowGradients", "SharedDraws", "attribute", "ends", "scores"]
