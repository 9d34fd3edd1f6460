"""Run folders: what a run writes, so that it can be read, resumed after a kill, and repeated."""

from carv3d.runs.checkpoints import Checkpoint, Checkpoints
from carv3d.runs.environment import environment
from carv3d.runs.interruption import Interruption
from carv3d.runs.metrics import MetricsLog, read_metrics
from carv3d.runs.run import Run, RunFolder, slug
from carv3d.runs.storage import disk_errors, made_folder, replace_file, temporary_folder

__all__ = [
    "Checkpoint",
    "Checkpoints",
    "Interruption",
    "MetricsLog",
    "Run",
    "RunFolder",
    "disk_errors",
    "environment",
    "made_folder",
    "read_metrics",
    "replace_file",
    "slug",
    "temporary_folder",
]
