"""The config of each verb that works by one."""

from typing import Any

from carv3d.attribution.config import AttributeConfig as AttributeConfig
from carv3d.distillation.config import DistillConfig as DistillConfig
from carv3d.generation.config import Config as Config

PIPELINES: dict[str, type[Any]] = {"generate": Config, "attribute": AttributeConfig, "distill": DistillConfig}
"""By verb."""
