"""Measures of quality in a comparison: similarity to the true object, or agreement of pictures and prompts by CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from carv3d.cameras import Sampler
from carv3d.evaluation.clip import Clip, views
from carv3d.evaluation.evaluation import Judge
from carv3d.generation.generation import Trained
from carv3d.generation.results import render_views
from carv3d.shapes import parse


@dataclass(frozen=True)
class Scale:
    """Names of a yardstick's two figures. Curves and speed-ups are of the first.

    Attributes:
        keys: in files. names: in reports.
        unit: of the first, " dB" for instance.
    """

    keys: tuple[str, str]
    names: tuple[str, str]
    unit: str

    @property
    def label(self) -> str:
        """The first figure with its unit."""
        return ",".join(filter(None, [self.names[0], self.unit]))


TRUTH = Scale(("psnr", "iou"), ("PSNR", "IoU"), " dB")
ALIGNMENT = Scale(("clip_score", "r_precision"), ("CLIP score", "R-precision"), "")


class Yardstick(Protocol):
    """Measures a run's object."""

    scale: Scale

    def measure(self, prompt: str, trained: Trained, sampler: Sampler) -> tuple[float, float]:
        """Both figures.

        Args:
            prompt: the run's.
            trained: its scene at some step.
            sampler: its training cameras.
        """
        ...


class Truth:
    """Against the true object; see `carv3d.evaluation.evaluation.Score`."""

    scale = TRUTH

    @cached_property
    def _judge(self) -> Judge:  # takes seconds, and may not be needed
        return Judge()

    def measure(self, prompt: str, trained: Trained, sampler: Sampler) -> tuple[float, float]:
        """See `Yardstick`; from the judge's own cameras."""
        rgb, opacity, _ = render_views(trained.scene, trained.renderer, self._judge.cameras)
        return self._judge.fidelity(parse(prompt), rgb, opacity)


class Alignment:
    """By CLIP, among all prompts of the comparison; see `carv3d.evaluation.clip.Alignment`."""

    scale = ALIGNMENT

    def __init__(self, clip: Clip, prompts: Sequence[str]) -> None:
        self._clip, self._prompts = clip, prompts

    def measure(self, prompt: str, trained: Trained, sampler: Sampler) -> tuple[float, float]:
        """See `Yardstick`; from cameras around the object."""
        rgb, _, _ = render_views(trained.scene, trained.renderer, views(sampler))
        found = self._clip.alignment(rgb, prompt, self._prompts)
        return found.clip_score, found.r_precision
