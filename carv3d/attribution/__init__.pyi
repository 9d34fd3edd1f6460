from .attribution import Attributed as Attributed
from .attribution import attribute as attribute
from .draws import SharedDraws as SharedDraws
from .gradients import RowGradients as RowGradients
from .projection import Projection as Projection
from .scores import ends as ends
from .scores import scores as scores
