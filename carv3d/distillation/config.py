"""The config of `carv3d distill`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal

from carv3d.cameras.config import CameraConfig
from carv3d.config.common import CommonConfig
from carv3d.config.components import ComponentConfig
from carv3d.config.keys import NOT_BLANK, Betas, Component, Fraction, Interval, Key, LearningRate, Seed
from carv3d.config.values import Rule
from carv3d.prompts.config import ViewsConfig


@dataclass
class MatchingConfig:
    """The estimate of the score difference. resamples=1 is plain DMD2."""

    renders: Annotated[int, Key("R, generator outputs a step", ge=1, le=4_096)] = 16
    resamples: Annotated[int, Key("K, (t, eps) draws an output", ge=1, le=4_096)] = 1
    strata: Annotated[Literal["none", "render"], Key("of timesteps; render: K strata an output")] = "render"
    coupling: Annotated[Literal["independent", "antithetic"], Key("of the K noises of an output", formerly="noise")] = (
        "independent"
    )
    scale: Annotated[float, Key("of the teacher's classifier-free guidance; 1 is the conditional model", ge=0)] = 3.0
    t_min: Fraction = 0.02
    t_max: Fraction = 0.98
    chunk: Annotated[
        int, Key("most (output, resample) pairs in one network call; 0: all at once", ge=0, le=1_000_000)
    ] = 0

    def rules(self, prefix: str) -> Iterator[Rule]:
        """Some timestep is left."""
        inside = self.t_min < self.t_max
        yield f"{prefix}.t_min", self.t_min, inside, f"from 0 to below {prefix}.t_max ({self.t_max:g})"


@dataclass
class GeneratorConfig:
    """The network that makes a picture in one step."""

    timestep: Annotated[float, Key("at which it is called, fraction of the schedule", gt=0, le=1)] = 1.0
    lr: LearningRate = 1e-4
    betas: Betas = field(default_factory=lambda: [0.0, 0.999])
    average: Annotated[
        float,
        Key("decay of the running average of its weights, which is what is kept; 0: the last weights", ge=0, lt=1),
    ] = 0.98


@dataclass
class FakeScoreConfig:
    """The network that learns the score of the generator's outputs."""

    updates: Annotated[int, Key("of it, for each update of the generator", ge=1, le=1_000)] = 2
    batch: Annotated[int, Key("outputs an update", ge=1, le=4_096)] = 16
    lr: LearningRate = 2e-4
    betas: Betas = field(default_factory=lambda: [0.0, 0.999])
    divergence: Annotated[float, Key("a loss this many times its running mean stops the run", gt=1)] = 10.0


@dataclass
class DistillationConfig:
    """Length of a run, and what it writes on the way."""

    steps: Annotated[int, Key("of the generator", ge=1, le=100_000_000)] = 240
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"], Key("of the networks; auto: bfloat16 where it is fast")
    ] = "auto"
    preview_every: Interval = 50
    checkpoint_every: Annotated[int, Key("steps between two; 0: only at the end", ge=0, le=100_000_000)] = 50
    keep_checkpoints: Annotated[int, Key("how many of the newest are kept", ge=1, le=1_000_000)] = 2


@dataclass
class DistillConfig(CommonConfig):
    """Every key of `carv3d distill`, with its default, meaning and range. YAML files hold differences only."""

    name: Annotated[str, Key("of the run's folder", pattern=NOT_BLANK, allowed="the name of a folder")] = "one-step"
    prompts: Annotated[
        str,
        Key(
            "a file of prompts, one a line; builtin: all objects in all colours of the built-in world",
            pattern=NOT_BLANK,
            allowed="a file of prompts, or builtin",
        ),
    ] = "builtin"
    negative_prompt: Annotated[str, Key("what the unconditional prediction is given")] = ""
    seed: Seed = 0
    cameras: Annotated[ComponentConfig, Component("cameras")] = field(
        default_factory=lambda: CameraConfig(order="independent")
    )
    views: ViewsConfig = field(default_factory=ViewsConfig)
    matching: MatchingConfig = field(default_factory=MatchingConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    fake: FakeScoreConfig = field(default_factory=FakeScoreConfig)
    training: DistillationConfig = field(default_factory=DistillationConfig)

    def rules(self, prefix: str) -> Iterator[Rule]:
        """What distillation can work with."""
        kind = self.teacher.type
        yield "teacher.type", kind, kind == "diffusers", "diffusers (a network to start from)"
        order = getattr(self.cameras, "order", "independent")
        yield "cameras.order", order, order == "independent", "independent (every update draws its own)"
        yield "views.perp_neg", self.views.perp_neg, not self.views.perp_neg, "false"
