"""Configs: the schema with its defaults, reading, checking and writing. Does not import torch."""

from typing import Any

from carv3d.config.attribution import AttributeConfig
from carv3d.config.distillation import DistillConfig
from carv3d.config.loading import find_config, load
from carv3d.config.ramp import Ramp
from carv3d.config.schema import Config
from carv3d.config.validation import require_prompt, validate
from carv3d.config.writing import describe, to_yaml

PIPELINES: dict[str, type[Any]] = {"generate": Config, "attribute": AttributeConfig, "distill": DistillConfig}
"""The verbs that work by a config, and the dataclass that has its keys."""

__all__ = [
    "PIPELINES",
    "AttributeConfig",
    "Config",
    "DistillConfig",
    "Ramp",
    "describe",
    "find_config",
    "load",
    "require_prompt",
    "to_yaml",
    "validate",
]
