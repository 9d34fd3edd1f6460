"""The configs of carv3d's teachers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from carv3d.config.components import Context
from carv3d.config.keys import NOT_BLANK, Key

if TYPE_CHECKING:
    from carv3d.teachers.diffusers_pipeline import DiffusersTeacher
    from carv3d.teachers.exact import ExactTeacher


@dataclass
class DiffusersTeacherConfig:
    """A diffusers pipeline: Stable Diffusion 1, 2, XL, 3, DeepFloyd IF."""

    loads_pipeline: ClassVar[bool] = True

    type: Literal["diffusers"] = "diffusers"
    path: Annotated[
        str,
        Key(
            'a pipeline folder, a .safetensors file, a hub id, or "builtin"',
            pattern=NOT_BLANK,
            allowed='a pipeline folder, a hub id or "builtin"',
        ),
    ] = "builtin"
    revision: Annotated[str, Key("branch, tag or commit of a hub id")] = ""
    mirrors: Annotated[list[str], Key("tried in order where path does not exist")] = field(default_factory=list)
    allow_pickle: Annotated[bool, Key("load pickled .bin weights, which can run any code")] = False
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"],
        Key("number format of the frozen networks; a CPU that is slow in it computes in float32"),
    ] = "float32"
    posterior: Annotated[Literal["mode", "sample"], Key("which latent of the encoder's posterior is used")] = "mode"
    camera: Annotated[
        Literal["auto", "vector", "none"],
        Key("vector: the network is given the camera; auto: if it can take it"),
    ] = "auto"
    view_words: Annotated[bool, Key('append ", front view" and the like to the prompt')] = True
    image_size: Annotated[
        int,
        Key("pixels that renders are resized to before encoding; 0: the size of the teacher's training", ge=0, le=8192),
    ] = 0
    cache_text: Annotated[bool, Key("keep prompt embeddings on disk, so that text encoders are not loaded again")] = (
        True
    )
    channels_last: Annotated[
        bool, Key("memory layout of the denoiser's convolutions; may be faster on a GPU in half precision")
    ] = False
    compile: Annotated[bool, Key("compile the denoiser with torch.compile: minutes at the start, faster steps")] = False
    lean: Annotated[bool, Key("attention and pictures in slices: slower, for small GPUs")] = False

    @property
    def builtin_world(self) -> bool:
        """Whether prompts are objects of the built-in world, whose true pictures are known."""
        return self.path == "builtin"

    def build(self, context: Context) -> DiffusersTeacher:
        """The teacher, loaded."""
        import torch

        from carv3d.system.arithmetic import network_dtype
        from carv3d.teachers.diffusers_pipeline import DiffusersTeacher

        config = context.config
        dtype: Any = str(network_dtype(getattr(torch, self.dtype), context.device)).removeprefix("torch.")
        return DiffusersTeacher(
            replace(self, dtype=dtype), views=getattr(config, "views", None), force=config.force, device=context.device
        )


@dataclass
class ExactTeacherConfig:
    """The closed-form denoiser of one object's own pictures. It knows the answer: for tests and checks."""

    builtin_world: ClassVar[bool] = True

    type: Literal["exact"] = "exact"
    views: Annotated[int, Key("reference pictures of the object", ge=1, le=100_000)] = 400
    neighbours: Annotated[
        int, Key("reference pictures nearest to the camera that make up the posterior", ge=1, le=100_000)
    ] = 24
    concentration: Annotated[
        float, Key("how fast the prior weight of a picture falls with its angle to the camera", ge=0)
    ] = 60.0

    def build(self, context: Context) -> ExactTeacher:
        """The teacher."""
        from carv3d.teachers.exact import ExactTeacher

        return ExactTeacher(self, device=context.device)
