"""One-step generators distilled from a teacher, by distribution matching."""

from carv3d.distillation.distillation import distil, load_distiller, write_samples
from carv3d.distillation.one_step import OneStep, find_pipeline, write_pipeline
from carv3d.distillation.run import DistillationRun
from carv3d.distillation.trainer import Distiller, DivergenceError

__all__ = [
    "DistillationRun",
    "Distiller",
    "DivergenceError",
    "OneStep",
    "distil",
    "find_pipeline",
    "load_distiller",
    "write_pipeline",
    "write_samples",
]
