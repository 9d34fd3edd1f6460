from .base import ScoreModel as ScoreModel
from .base import Teacher as Teacher
from .diffusers_pipeline import DiffusersTeacher as DiffusersTeacher
from .exact import ExactTeacher as ExactTeacher
from .schedule import NoiseSchedule as NoiseSchedule
from .text_condition import TextCondition as TextCondition
