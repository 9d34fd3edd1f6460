"""Every key a config of `carv3d attribute` can have, with its default, unit and meaning."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from carv3d.config.rules import Rule, at_least, finite
from carv3d.config.teachers import DiffusersTeacher


@dataclass
class Data:
    """The training pictures that samples are traced back to."""

    path: str = "builtin"  # a folder, a metadata.jsonl, or "builtin" for what the built-in teacher was trained on
    items: int = 2000  # how many of them; of a folder the first ones by name; 0: all
    seed: int = 0  # of the built-in teacher's 64,000, which ones are taken


@dataclass
class Draws:
    """The (t, eps) that all pictures and all queries share. A cosine needs no importance sampling, see docs."""

    count: int = 16
    strata: Literal["none", "global"] = "global"  # of t; global: one draw in each of count strata
    noise: Literal["independent", "antithetic"] = "independent"  # of eps; antithetic: opposite pairs
    t_min: float = 0.02  # smallest timestep, fraction of the schedule
    t_max: float = 0.98  # largest timestep, fraction of the schedule
    seed: int = 0


@dataclass
class Projection:
    """Random projection of the gradients."""

    dimension: int = 512  # numbers that are kept of a gradient
    seed: int = 0


@dataclass
class Queries:
    """What is to be explained: pictures that the teacher makes of the prompts, or given ones."""

    path: str = ""  # given ones: a folder or metadata.jsonl with captions; "": made from the prompts
    count: int = 1  # pictures a prompt
    scale: float = 3.0  # classifier-free guidance
    steps: int = 30  # of DDIM
    seed: int = 0


@dataclass
class AttributeConfig:
    """One attribution: training pictures, queries, and how gradients are compared."""

    device: str = "auto"  # auto | cpu | cuda | cuda:N
    threads: int = 0  # torch threads on the CPU; 0: as many as there are cores to run on
    output_dir: str = "outputs"  # results go to <output_dir>/attribute/<name>
    force: bool = False  # go on with a prompt that the built-in teacher does not know
    layers: str = r"up_blocks\.0\.resnets\.1"  # regular expression, found in names of linear and convolutional layers
    rows: int = 32  # most (picture, draw) pairs in one call of the denoiser
    top: int = 10  # training pictures shown for a query, at either end
    teacher: Any = field(default_factory=DiffusersTeacher)
    data: Data = field(default_factory=Data)
    draws: Draws = field(default_factory=Draws)
    projection: Projection = field(default_factory=Projection)
    queries: Queries = field(default_factory=Queries)

    def rules(self) -> Iterator[Rule]:
        """See `carv3d.config.rules`."""
        yield from finite(self, "")
        teacher = self.teacher
        known = isinstance(teacher, DiffusersTeacher)
        yield (
            "teacher.type",
            teacher.type,
            known,
            "diffusers: gradients are taken of a pipeline's network, which no other kind of teacher has",
        )
        # Squared losses leave the range of half precision, and their gradients vanish below it.
        yield "teacher.dtype", teacher.dtype, teacher.dtype != "float16", "float32 or bfloat16 for gradients"
        yield "teacher.compile", teacher.compile, not teacher.compile, "false: gradients are taken layer by layer"
        mode = teacher.posterior == "mode"
        yield "teacher.posterior", teacher.posterior, mode, "mode: a picture has one latent here"
        builtin = self.data.path != "builtin" or teacher.path == "builtin"
        yield "data.path", self.data.path, builtin, "a folder of pictures, since teacher.path is not builtin"
        device = re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device)
        yield "device", self.device, device is not None, "auto, cpu, cuda or cuda:N"
        yield "output_dir", self.output_dir, bool(self.output_dir.strip()), "a folder"
        yield "threads", self.threads, self.threads >= 0, "at least 0"
        for key in ("rows", "top"):
            yield key, getattr(self, key), getattr(self, key) >= 1, "at least 1"
        yield from at_least(self.data, "data", items=0)
        draws = self.draws
        yield from at_least(draws, "draws", count=1)
        inside = 0 <= draws.t_min < draws.t_max <= 1
        yield "draws.t_min and .t_max", [draws.t_min, draws.t_max], inside, "fractions of the schedule, in order"
        yield from at_least(self.projection, "projection", dimension=2)
        yield from at_least(self.queries, "queries", count=1, scale=0, steps=1)
        for section in ("data", "draws", "projection", "queries"):
            seed = getattr(self, section).seed
            yield f"{section}.seed", seed, 0 <= seed < 2**63, "from 0 to 2^63 - 1"
