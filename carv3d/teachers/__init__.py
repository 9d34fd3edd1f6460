"""Frozen diffusion models that judge renders."""

from carv3d.teachers.base import NoiseSchedule, Teacher
from carv3d.teachers.diffusers_pipeline import DiffusersTeacher
from carv3d.teachers.exact import ExactTeacher

__all__ = ["DiffusersTeacher", "ExactTeacher", "NoiseSchedule", "Teacher"]
