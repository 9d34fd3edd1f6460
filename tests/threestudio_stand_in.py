"""As much of threestudio as carv3d's guidances use, written for the tests: registry, base classes, schedules, prompts,
and a guidance with its own keys, networks and ranges. `scripts/check_threestudio.py` holds them against the real one.
"""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from omegaconf import OmegaConf
from torch import Tensor, nn

CPU = torch.device("cpu")
MODULES = ("threestudio.utils.base", "threestudio.utils.misc", "threestudio.models.prompt_processors.base")


class Updateable:
    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        pass


class BaseObject(Updateable):
    @dataclass
    class Config:
        pass

    def __init__(self, cfg: Any = None, *args: Any, **options: Any) -> None:
        super().__init__()
        self.cfg = OmegaConf.structured(self.Config(**(cfg or {})))
        self.device = CPU
        self.configure(*args, **options)

    def configure(self) -> None:
        pass


class BaseModule(nn.Module, Updateable):
    @dataclass
    class Config:
        weights: str | None = None

    def __init__(self, cfg: Any = None, *args: Any, **options: Any) -> None:
        super().__init__()
        self.cfg = OmegaConf.structured(self.Config(**(cfg or {})))
        self.device = CPU
        self.configure(*args, **options)

    def configure(self) -> None:
        pass


def C(value: Any, epoch: int, global_step: int) -> float:
    """A number, or [first step, first value, last value, last step]."""
    if isinstance(value, (int, float)):
        return value
    start, first, last, end = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    return first + (last - first) * max(min(1.0, (global_step - start) / (end - start)), 0.0)


def get_rank() -> int:
    return int(os.environ.get("RANK", 0))


class PromptProcessor(BaseObject):
    @dataclass
    class Config(BaseObject.Config):
        prompt: str = "a hamburger"
        prompt_front: str | None = None
        prompt_side: str | None = None
        prompt_back: str | None = None
        prompt_overhead: str | None = None
        negative_prompt: str = ""
        overhead_threshold: float = 60.0
        front_threshold: float = 45.0
        back_threshold: float = 45.0
        view_dependent_prompt_front: bool = False
        use_perp_neg: bool = False
        use_prompt_debiasing: bool = False

    def preprocess_prompt(self, prompt: str) -> str:
        return prompt


@dataclass
class Prompts:
    """What a prompt processor gives: embeddings that depend on the view; two negatives a view with Perp-Neg."""

    text: Tensor  # (4, tokens, width) of side, front, back, overhead
    none: Tensor  # (tokens, width)
    use_perp_neg: bool = False

    def index(self, azimuth: Tensor) -> Tensor:
        return (azimuth.abs() < 45).long() + 2 * (azimuth.abs() > 135).long()

    def get_text_embeddings(self, elevation: Tensor, azimuth: Tensor, distances: Tensor, views: bool = True) -> Tensor:
        index = self.index(azimuth) if views else torch.zeros_like(azimuth).long()
        return torch.cat([self.text[index], self.none.expand(len(azimuth), -1, -1)])

    def get_text_embeddings_perp_neg(self, elevation: Tensor, azimuth: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        index = self.index(azimuth)
        negatives = torch.stack([self.text[(index + 1) % 4], self.text[(index + 2) % 4]], 1).flatten(0, 1)
        texts = torch.cat([self.text[index], self.none.expand(len(azimuth), -1, -1), negatives])
        return texts, torch.stack([-0.3 - azimuth / 1000, -0.8 + azimuth / 1000], 1)


class Guidance(BaseObject):
    @dataclass
    class Config(BaseObject.Config):
        pretrained_model_name_or_path: str = ""
        guidance_scale: float = 100.0
        grad_clip: Any = None
        half_precision_weights: bool = True
        min_step_percent: float = 0.02
        max_step_percent: float = 0.98
        sqrt_anneal: bool = False
        use_img_loss: bool = False
        use_sjc: bool = False
        var_red: bool = True
        weighting_strategy: str = "sds"
        view_dependent_prompting: bool = True
        max_items_eval: int = 4

    def configure(self) -> None:
        dtype = torch.float16 if self.cfg.half_precision_weights else torch.float32
        path = self.cfg.pretrained_model_name_or_path
        self.pipe = StableDiffusionPipeline.from_pretrained(
            path, tokenizer=None, safety_checker=None, feature_extractor=None, torch_dtype=dtype
        )
        del self.pipe.text_encoder
        self.scheduler = DDIMScheduler.from_pretrained(path, subfolder="scheduler")
        self.num_train_timesteps = self.scheduler.config.num_train_timesteps
        self.alphas = self.scheduler.alphas_cumprod
        self.grad_clip_val: float | None = None
        self.set_min_max_steps(0.02, 0.98)

    def set_min_max_steps(self, low: float, high: float) -> None:
        self.min_step, self.max_step = int(self.num_train_timesteps * low), int(self.num_train_timesteps * high)

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        if self.cfg.grad_clip is not None:
            self.grad_clip_val = C(self.cfg.grad_clip, epoch, global_step)
        ends = (self.cfg.min_step_percent, self.cfg.max_step_percent)
        self.set_min_max_steps(*(C(end, epoch, global_step) for end in ends))

    def guidance_eval(self, t: Tensor, told: Tensor, z_t: Tensor, noise: Tensor, perp_neg: bool, weights: Any) -> Any:
        """Says what it was given, where the real one draws pictures."""
        return {"bs": len(z_t), "noise_levels": (t / 1000).tolist(), "told": told, "noise": noise, "weights": weights}

    forward_unet = encode_images = decode_latents = compute_grad_sds = configure  # the real one has them


@contextmanager
def stand_in() -> Iterator[Any]:
    """While it lasts, `import threestudio` gives this; carv3d's guidances are registered. Gives the module."""
    registry: dict[str, Any] = {"stable-diffusion-guidance": Guidance}
    module: Any = types.ModuleType("threestudio")
    module.__version__ = "0.2.3"
    module.find = registry.__getitem__
    module.register = lambda name: lambda kind: registry.setdefault(name, kind)
    module.info = module.warn = lambda *words: None
    parts = {name: types.ModuleType(name) for name in ("threestudio.utils", "threestudio.models", *MODULES)}
    parts["threestudio.models.prompt_processors"] = types.ModuleType("threestudio.models.prompt_processors")
    for name, kind in (("BaseObject", BaseObject), ("BaseModule", BaseModule)):
        setattr(parts["threestudio.utils.base"], name, kind)
    for name, function in (("C", C), ("get_rank", get_rank)):
        setattr(parts["threestudio.utils.misc"], name, function)
    vars(parts["threestudio.models.prompt_processors.base"])["PromptProcessor"] = PromptProcessor
    sys.modules |= {"threestudio": module, **parts}
    try:
        from carv3d.integrations import threestudio as plug_in

        plug_in.register()
        yield module
    finally:
        ours = "carv3d.integrations.threestudio."
        needs_it = [name for name in sys.modules if name.startswith(ours) and "threestudio" in vars(sys.modules[name])]
        for name in [*needs_it, f"{ours}distiller", f"{ours}teacher", f"{ours}vsd", "threestudio", *parts]:
            sys.modules.pop(name, None)
