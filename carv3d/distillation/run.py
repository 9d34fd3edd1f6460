"""A distillation's folder.

outputs/distill/<name>-<n>/
  config.yaml  environment.json  metrics.jsonl  log.txt  tensorboard/
  checkpoints/step_000100/{generator.safetensors, state.safetensors, state.json}
  previews/  samples.png  pipeline/
"""

from __future__ import annotations

from pathlib import Path

from carv3d.config import DistillConfig
from carv3d.runs import RunFolder


class DistillationRun(RunFolder[DistillConfig]):
    """A run of `carv3d distill`."""

    kind = DistillConfig
    verb = "distill"
    trained = "generator"

    @classmethod
    def name_of(cls, config: DistillConfig) -> str:
        """The config's name."""
        return config.name

    @property
    def pipeline(self) -> Path:
        """Folder of the distilled generator, in the layout of diffusers."""
        return self.path / "pipeline"

    @property
    def samples(self) -> Path:
        """The picture of one-step samples at the end."""
        return self.path / "samples.png"
