"""Frozen diffusion models that judge renders."""

from carv3d.teachers.base import ScoreModel, Teacher
from carv3d.teachers.diffusers_pipeline import DiffusersTeacher
from carv3d.teachers.exact import ExactTeacher
from carv3d.teachers.schedule import NoiseSchedule
from carv3d.teachers.text_condition import TextCondition

__all__ = ["DiffusersTeacher", "ExactTeacher", "NoiseSchedule", "ScoreModel", "Teacher", "TextCondition"]
