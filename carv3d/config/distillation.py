"""Every key of `carv3d distill`, with its default, unit and meaning. YAML files hold differences only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from carv3d.config import schema
from carv3d.config.cameras import Cameras
from carv3d.config.rules import Rule, adam, at_least, finite
from carv3d.config.teachers import DiffusersTeacher
from carv3d.config.validation import rules as rules_of_generation


@dataclass
class Matching:
    """The estimate of the score difference. resamples=1 is plain DMD2."""

    renders: int = 16  # R, generator outputs a step
    resamples: int = 1  # K, (t, eps) re-noisings of each
    strata: Literal["none", "render"] = "render"  # render: K strata an output
    noise: Literal["independent", "antithetic"] = "independent"  # of the K re-noisings of an output
    scale: float = 3.0  # classifier-free guidance of the teacher; 1 is the conditional model
    t_min: float = 0.02  # smallest timestep, fraction of the schedule
    t_max: float = 0.98  # largest timestep, fraction of the schedule
    chunk: int = 0  # most (output, re-noising) pairs in one network call; 0: all at once


@dataclass
class Generator:
    """The network that makes a picture in one step."""

    timestep: float = 1.0  # that its noise is given as, fraction of the schedule
    lr: float = 1e-4  # Adam
    betas: list[float] = field(default_factory=lambda: [0.0, 0.999])  # Adam
    average: float = 0.98  # decay of the running average of its weights, which is what is kept; 0: the weights alone


@dataclass
class FakeScore:
    """The network that learns the score of the generator's outputs."""

    updates: int = 2  # of it, for one of the generator
    batch: int = 16  # outputs an update
    lr: float = 2e-4  # Adam
    betas: list[float] = field(default_factory=lambda: [0.0, 0.999])  # Adam
    divergence: float = 10.0  # a loss this many times its running level stops the run


@dataclass
class Distillation:
    """Length and book-keeping of a run."""

    steps: int = 240  # of the generator
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # of the networks; auto: bfloat16 where it is fast
    preview_every: int = 50  # steps; 0: never
    checkpoint_every: int = 50  # steps; 0: only at the end
    keep_checkpoints: int = 2  # newest ones to keep


@dataclass
class DistillConfig:
    """One distillation."""

    name: str = "one-step"  # of the run's folder
    prompts: str = "builtin"  # a file of prompts, one a line; builtin: all objects in all colours of the built-in world
    negative_prompt: str = ""
    seed: int = 0
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    threads: int = 0  # torch threads on the CPU; 0: as many as there are cores to run on
    output_dir: str = "outputs"  # runs go to <output_dir>/<config name>/<name>-<n>
    force: bool = False  # go on with prompts that the built-in teacher does not know
    teacher: Any = field(default_factory=DiffusersTeacher)
    cameras: Any = field(default_factory=lambda: Cameras(order="independent"))
    views: schema.Views = field(default_factory=schema.Views)
    matching: Matching = field(default_factory=Matching)
    generator: Generator = field(default_factory=Generator)
    fake: FakeScore = field(default_factory=FakeScore)
    training: Distillation = field(default_factory=Distillation)

    def shared(self) -> schema.Config:
        """The sections that text to 3-D has too, as its config: for what is built from those."""
        return schema.Config(
            seed=self.seed,
            device=self.device,
            threads=self.threads,
            output_dir=self.output_dir,
            force=self.force,
            teacher=self.teacher,
            cameras=self.cameras,
            views=self.views,
        )

    def rules(self) -> Iterator[Rule]:
        """See `carv3d.config.rules`."""
        yield from finite(self, "")
        yield from rules_of_generation(self.shared())
        kind = self.teacher.type
        yield "teacher.type", kind, kind == "diffusers", "diffusers (a network to start from)"
        order = getattr(self.cameras, "order", "independent")
        yield "cameras.order", order, order == "independent", "independent (every update draws its own)"
        yield "views.perp_neg", self.views.perp_neg, not self.views.perp_neg, "false"
        yield "name", self.name, bool(self.name.strip()), "the name of a folder"
        yield "prompts", self.prompts, bool(self.prompts.strip()), "a file of prompts, or builtin"
        matching = self.matching
        yield from at_least(matching, "matching", renders=1, resamples=1, scale=0, chunk=0)
        yield "matching.t_max", matching.t_max, matching.t_max <= 1, "at most 1"
        inside = 0 <= matching.t_min < matching.t_max
        yield "matching.t_min", matching.t_min, inside, f"from 0 to below matching.t_max ({matching.t_max:g})"
        yield "generator.timestep", self.generator.timestep, 0 < self.generator.timestep <= 1, "above 0 and at most 1"
        average = self.generator.average
        yield "generator.average", average, 0 <= average < 1, "from 0 up to, not including, 1"
        for key, section in (("generator", self.generator), ("fake", self.fake)):
            yield from adam(section, key)
        yield from at_least(self.fake, "fake", updates=1, batch=1)
        yield "fake.divergence", self.fake.divergence, self.fake.divergence > 1, "greater than 1"
        yield from at_least(self.training, "training", steps=1, preview_every=0, checkpoint_every=0)
        yield from at_least(self.training, "training", keep_checkpoints=1)
