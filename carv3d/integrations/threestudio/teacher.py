"""`carv-teacher-guidance`: any of carv3d's teachers in threestudio, Stable Diffusion 1, 2, XL and 3, DeepFloyd IF.

Texts are encoded by the teacher; `carv-prompt-processor` only holds them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import threestudio
import torch
import torch.nn.functional as F
from threestudio.models.prompt_processors.base import PromptProcessor
from threestudio.utils.base import BaseObject
from threestudio.utils.misc import C
from torch import Tensor

from carv3d.cameras import Cameras
from carv3d.errors import UserError
from carv3d.guidance import ClassifierFree, PerpNeg
from carv3d.integrations.threestudio.distiller import Distiller
from carv3d.integrations.threestudio.options import CarvOptions, check_keys, objective_of, refuse_state
from carv3d.prompts.views import ViewPrompts
from carv3d.teachers import DiffusersTeacher
from carv3d.teachers.config import DiffusersTeacherConfig

# Keys of threestudio's prompt processors that carv3d does not support, and the values that are allowed.
_FIXED = {
    "prompt_front": None,
    "prompt_side": None,
    "prompt_back": None,
    "prompt_overhead": None,
    "view_dependent_prompt_front": False,
    "use_prompt_debiasing": False,
}


@dataclass(frozen=True)
class Prompted:
    """The result of `carv-prompt-processor` for the guidance.

    Attributes:
        prompt, negative_prompt: texts.
        views: which angles get which view words.
    """

    prompt: str
    negative_prompt: str
    views: ViewPrompts


@threestudio.register("carv-prompt-processor")
class CarvPromptProcessor(PromptProcessor):
    """It has the keys of threestudio's own, so that configs need no change. It encodes nothing."""

    @dataclass
    class Config(PromptProcessor.Config):
        """The keys."""

    cfg: Config

    def configure(self) -> None:
        """Look the prompt up.

        Raises:
            ValueError: a key that asks for other view words than carv3d's.
        """
        for key, value in _FIXED.items():
            if self.cfg.get(key) != value:
                raise ValueError(
                    f"carv-prompt-processor appends view words of its own: leave out system.prompt_processor.{key}"
                )
        library = Path("load/prompt_library.json")
        self.prompt_library = json.loads(library.read_text(encoding="utf-8")) if library.exists() else {}
        self.prompt = self.preprocess_prompt(self.cfg.prompt)

    def __call__(self) -> Prompted:
        """See `Prompted`."""
        cfg = self.cfg
        views = ViewPrompts(
            front=cfg.front_threshold,
            back=cfg.back_threshold,
            overhead=cfg.overhead_threshold,
            perp_neg=cfg.use_perp_neg,
        )
        return Prompted(self.prompt, cfg.negative_prompt, views)


@threestudio.register("carv-teacher-guidance")
class CarvTeacherGuidance(BaseObject):
    """Distils from a `carv3d.teachers.DiffusersTeacher`."""

    @dataclass
    class Config(CarvOptions, BaseObject.Config):
        """The keys. Those of `stable-diffusion-guidance` have the same meaning."""

        pretrained_model_name_or_path: str = "stabilityai/stable-diffusion-2-1"  # or "builtin", a folder, a file
        half_precision_weights: bool = True
        posterior: str = "sample"  # which latent of the encoder's posterior: sample or mode
        guidance_scale: float = 100.0  # text + s (text - uncond); with Perp-Neg uncond + s (...)
        weighting_strategy: str = "sds"  # uniform, fantasia3d; velocity for flows (Stable Diffusion 3)
        min_step_percent: Any = 0.02
        max_step_percent: Any = 0.98
        grad_clip: Any = None
        view_dependent_prompting: bool = True
        force: bool = False  # let the built-in teacher work on words that it does not know

    cfg: Config

    def __init__(self, cfg: Mapping[str, Any] | None = None, *args: Any, **options: Any) -> None:
        check_keys("carv-teacher-guidance", self.Config, cfg)
        super().__init__(cfg, *args, **options)

    def configure(self) -> None:
        """Load the teacher.

        Raises:
            ValueError: a missing teacher, or an unsupported key.
        """
        cfg = self.cfg
        objective = objective_of(cfg.objective)
        if cfg.posterior not in ("sample", "mode"):
            raise ValueError(f"system.guidance.posterior must be sample or mode, not {cfg.posterior!r}")
        half = cfg.half_precision_weights and self.device.type != "cpu"
        try:
            self.teacher = DiffusersTeacher(
                DiffusersTeacherConfig(
                    path=str(cfg.pretrained_model_name_or_path),
                    dtype="float16" if half else "float32",
                    posterior=cfg.posterior,  # type: ignore[arg-type]
                    view_words=cfg.view_dependent_prompting,
                ),
                force=cfg.force,
                device=self.device,
            )
        except UserError as error:
            raise ValueError(f"system.guidance.pretrained_model_name_or_path: {error}") from None
        scale = float(cfg.guidance_scale)
        self.prompted = ClassifierFree(scale + 1), PerpNeg(scale)
        self.distiller = Distiller(cfg, self.teacher, self.prompted[0], cfg.weighting_strategy, objective)
        refuse_state(objective)

    def __call__(
        self,
        rgb: Tensor,
        prompt_utils: Any,
        elevation: Tensor,
        azimuth: Tensor,
        camera_distances: Tensor,
        rgb_as_latents: bool = False,
        guidance_eval: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """See `Distiller`; the arguments are those of `stable-diffusion-guidance`.

        Raises:
            ValueError: another prompt processor, or pictures of what the teacher makes, which it does not.
        """
        if not isinstance(prompt_utils, Prompted):
            raise ValueError(
                "carv-teacher-guidance encodes texts itself: set system.prompt_processor_type=carv-prompt-processor"
            )
        if guidance_eval:
            raise ValueError("carv-teacher-guidance draws no guidance_eval pictures: use carv-guidance for them")
        rng = self.distiller.rng()
        with torch.autocast(rgb.device.type, enabled=False):
            pictures = rgb.permute(0, 3, 1, 2)
            if rgb_as_latents:
                size = self.teacher.latent_shape[1:]
                z = F.interpolate(pictures, size, mode="bilinear", align_corners=False)
            else:
                z = self.teacher.encode(pictures.float(), rng)
            cameras = Cameras.look_at_origin(azimuth, elevation, camera_distances)
            self.teacher.views = prompt_utils.views
            try:
                condition = self.teacher.condition(prompt_utils.prompt, cameras, prompt_utils.negative_prompt)
            except UserError as error:
                raise ValueError(f"system.prompt_processor.prompt: {error}") from None
            self.distiller.carv.guidance = self.prompted[prompt_utils.views.perp_neg]
            out, _ = self.distiller(z, condition, rng)
        return out

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        """Ranges and clipping follow threestudio's schedules."""
        cfg, count = self.cfg, len(self.teacher.schedule)
        low, high = (int(count * C(x, epoch, global_step)) for x in (cfg.min_step_percent, cfg.max_step_percent))
        clip = None if cfg.grad_clip is None else C(cfg.grad_clip, epoch, global_step)
        self.distiller.at(global_step, (low, high), clip)
