from .cameras import Cameras as Cameras
from .cameras import joined as joined
from .cameras import orbit as orbit
from .samplers import CameraSampler as CameraSampler
from .samplers import Range as Range
from .samplers import Sampler as Sampler
from .samplers import SequenceSampler as SequenceSampler
from .samplers import sequence_points as sequence_points
