"""The config of `carv3d attribute`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal

from carv3d.config.common import CommonConfig
from carv3d.config.keys import Fraction, Key, Seed
from carv3d.config.values import Rule
from carv3d.teachers.config import DiffusersTeacherConfig


@dataclass
class DataConfig:
    """The training pictures that samples are traced back to."""

    path: Annotated[
        str, Key('a folder, a metadata.jsonl, or "builtin": the training pictures of the built-in teacher')
    ] = "builtin"
    items: Annotated[int, Key("how many pictures; of a folder the first ones by name; 0: all", ge=0, le=10_000_000)] = (
        2000
    )
    seed: Annotated[
        int, Key("chooses pictures of the built-in teacher's 64,000", ge=0, lt=2**63, allowed="from 0 to 2^63 - 1")
    ] = 0


@dataclass
class DrawsConfig:
    """The (t, eps) draws that all pictures and all queries share. A cosine needs no importance sampling."""

    count: Annotated[int, Key("number of draws", ge=1, le=4_096)] = 16
    strata: Annotated[Literal["none", "global"], Key("of timesteps; global: one draw in each of count strata")] = (
        "global"
    )
    coupling: Annotated[
        Literal["independent", "antithetic"], Key("of the noises; antithetic: opposite pairs", formerly="noise")
    ] = "independent"
    t_min: Fraction = 0.02
    t_max: Fraction = 0.98
    seed: Seed = 0

    def rules(self, prefix: str) -> Iterator[Rule]:
        """Some timestep is left."""
        ends = [self.t_min, self.t_max]
        yield f"{prefix}.t_min and .t_max", ends, self.t_min < self.t_max, "fractions of the schedule, in order"


@dataclass
class ProjectionConfig:
    """Random projection of the gradients."""

    dimension: Annotated[int, Key("numbers that are kept of a gradient", ge=2, le=65_536)] = 512
    seed: Seed = 0


@dataclass
class QueriesConfig:
    """What is to be explained: pictures that the teacher makes of the prompts, or given pictures."""

    path: Annotated[str, Key('a folder or metadata.jsonl with captions; "": made from the prompts')] = ""
    count: Annotated[int, Key("pictures a prompt", ge=1, le=4_096)] = 1
    scale: Annotated[float, Key("of classifier-free guidance", ge=0)] = 3.0
    steps: Annotated[int, Key("of DDIM", ge=1, le=1_000)] = 30
    seed: Seed = 0


@dataclass
class AttributeConfig(CommonConfig):
    """Every key of `carv3d attribute`, with its default, meaning and range. YAML files hold differences only."""

    layers: Annotated[str, Key("regular expression, searched in the names of linear and convolutional layers")] = (
        r"up_blocks\.0\.resnets\.1"
    )
    rows: Annotated[int, Key("most (picture, draw) pairs in one call of the denoiser", ge=1, le=65_536)] = 32
    top: Annotated[int, Key("training pictures shown for a query, highest and lowest", ge=1, le=1_000)] = 10
    data: DataConfig = field(default_factory=DataConfig)
    draws: DrawsConfig = field(default_factory=DrawsConfig)
    projection: ProjectionConfig = field(default_factory=ProjectionConfig)
    queries: QueriesConfig = field(default_factory=QueriesConfig)

    def rules(self, prefix: str) -> Iterator[Rule]:
        """What attribution can work with."""
        teacher = self.teacher
        if not isinstance(teacher, DiffusersTeacherConfig):
            what = "diffusers: gradients are taken of a pipeline's network, which no other kind of teacher has"
            yield "teacher.type", teacher.type, False, what
            return
        # Squared losses leave the range of half precision, and their gradients vanish below it.
        yield "teacher.dtype", teacher.dtype, teacher.dtype != "float16", "float32 or bfloat16 for gradients"
        yield "teacher.compile", teacher.compile, not teacher.compile, "false: gradients are taken layer by layer"
        mode = teacher.posterior == "mode"
        yield "teacher.posterior", teacher.posterior, mode, "mode: a picture has one latent here"
        builtin = self.data.path != "builtin" or teacher.path == "builtin"
        yield "data.path", self.data.path, builtin, "a folder of pictures, since teacher.path is not builtin"
