"""Configs: the schema with its defaults, reading, checking and writing. Does not import torch."""

from collections.abc import Callable
from typing import Any

from carv3d.config.attribution import Attribution, validate_attribution
from carv3d.config.loading import find_config, load
from carv3d.config.schema import Config, Ramp
from carv3d.config.validation import require_prompt, validate
from carv3d.config.writing import describe, to_yaml

PIPELINES: dict[str, type[Any]] = {"generate": Config, "attribute": Attribution}
"""The verbs that work by a config, and the dataclass that has its keys."""

VALIDATE: dict[type[Any], Callable[[Any], None]] = {Config: validate, Attribution: validate_attribution}
"""What checks the ranges of each of them."""

__all__ = [
    "PIPELINES",
    "VALIDATE",
    "Attribution",
    "Config",
    "Ramp",
    "describe",
    "find_config",
    "load",
    "require_prompt",
    "to_yaml",
    "validate",
    "validate_attribution",
]
