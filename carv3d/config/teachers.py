"""The sections of the kinds of teacher."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

from carv3d.config.rules import Rule, at_least
from carv3d.config.section import Context, Section


@dataclass
class DiffusersTeacher(Section):
    """A diffusers pipeline: Stable Diffusion 1, 2, XL, 3, DeepFloyd IF."""

    type: Literal["diffusers"] = "diffusers"
    path: str = "builtin"  # a pipeline folder, a .safetensors file, a hub id, or "builtin" for the one in carv3d
    revision: str = ""  # of a hub id: a branch, tag or commit
    mirrors: list[str] = field(default_factory=list)  # tried in order where path does not exist
    allow_pickle: bool = False  # take pickled .bin weights, which can run any code
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"  # of the frozen networks; float32 where a CPU is slow
    posterior: Literal["mode", "sample"] = "mode"  # which latent of the encoder's posterior is used
    camera: Literal["auto", "vector", "none"] = "auto"  # vector: tell the network the camera; auto: if it can
    view_words: bool = True  # append ", front view" and the like to the prompt
    image_size: int = 0  # pixels, renders are resized to it before encoding; 0: as the teacher was trained
    cache_text: bool = True  # keep what prompts are encoded to, so that text encoders are not loaded again
    channels_last: bool = False  # lay out the denoiser's convolutions so; may be quicker on a GPU in half precision
    compile: bool = False  # the denoiser by torch.compile: minutes at the start, quicker steps
    lean: bool = False  # attention and pictures in slices: slower, for small cards

    loads_pipeline: ClassVar[bool] = True

    @property
    def builtin_world(self) -> bool:
        """Whether prompts are objects of the built-in world, whose true pictures are known."""
        return self.path == "builtin"

    def build(self, context: Context) -> Any:
        """See `Section`."""
        import torch

        from carv3d.prompts.views import ViewPrompts
        from carv3d.system.arithmetic import network_dtype
        from carv3d.teachers import DiffusersTeacher

        config = context.config
        keys = self.keys() | {"dtype": network_dtype(getattr(torch, self.dtype), context.device)}
        views = ViewPrompts(**asdict(config.views))
        return DiffusersTeacher(**keys, views=views, force=config.force, device=context.device)

    def rules(self, prefix: str) -> Iterator[Rule]:
        """See `Section`."""
        yield f"{prefix}.path", self.path, bool(self.path.strip()), 'a pipeline folder, a hub id or "builtin"'
        yield from at_least(self, prefix, image_size=0)


@dataclass
class ExactTeacher(Section):
    """The closed-form denoiser of one object's own pictures. It knows the answer: for tests and checks."""

    type: Literal["exact"] = "exact"
    views: int = 400  # reference pictures of the object
    neighbours: int = 24  # how many of them, nearest to the camera, make up the posterior
    concentration: float = 60.0  # how fast a picture's prior weight falls with its angle to the camera

    implementation: ClassVar[str] = "carv3d.teachers:ExactTeacher"
    builtin_world: ClassVar[bool] = True

    def extra(self, context: Context) -> dict[str, Any]:
        """See `Section`."""
        return {"device": context.device}

    def rules(self, prefix: str) -> Iterator[Rule]:
        """See `Section`."""
        yield from at_least(self, prefix, views=1, neighbours=1, concentration=0)
