"""Agreement of pictures and prompts, by CLIP (Radford et al., arXiv 2103.00020), for prompts without a true object."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from carv3d.cameras import Cameras, Sampler
from carv3d.config.paths import user_path
from carv3d.errors import UserError

DEFAULT_CLIP = "openai/clip-vit-base-patch32"
"""The paper's, 0.6 GB."""

_VIEWS, _ELEVATION, _SIZE = 10, 15.0, 224  # the paper's number of views; pixels along a side of CLIP's pictures

# Of CLIP's training pictures; the values in a model's preprocessor_config.json have priority.
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Alignment:
    """The agreement of an object's pictures with its prompt.

    Attributes:
        clip_score: mean over the views of `100 max(cos, 0)` (Hessel et al., arXiv 2104.08718, there times 2.5).
        r_precision: share of the views whose nearest prompt of a list is their own (Jain et al., arXiv 2112.01455).
    """

    clip_score: float
    r_precision: float


def views(sampler: Sampler) -> Cameras:
    """The cameras of the evaluation, evenly around the object, at the distance of training."""
    return sampler.around(_VIEWS, _ELEVATION, _SIZE)


class Clip:
    """A CLIP model."""

    def __init__(self, path: str = DEFAULT_CLIP, *, download: bool = True, device: torch.device | str = "cpu") -> None:
        """Load it.

        Args:
            path: a folder, or a hub id.
            download: fetch it from the hub if it is not on this machine.
            device: where it runs.

        Raises:
            UserError: it is not there, or no CLIP model.
        """
        from transformers import CLIPModel, CLIPTokenizer

        place = user_path(path)
        source = str(place) if place.is_dir() else path
        options: dict[str, Any] = {"local_files_only": place.is_dir() or not download}
        try:
            options |= {"use_safetensors": True, "output_loading_info": True}
            loaded: tuple[Any, dict[str, Any]] = CLIPModel.from_pretrained(source, **options)  # type: ignore[assignment]
            self._tokenizer = CLIPTokenizer.from_pretrained(source, local_files_only=options["local_files_only"])
        except Exception as error:  # errors of the libraries have no common class
            reason = " ".join(str(error).split())[:120]
            raise UserError(
                f"no CLIP model at {path!r}: give --clip a folder with a transformers CLIPModel in safetensors, or a "
                f"hub id such as {DEFAULT_CLIP} ({reason})"
            ) from None
        model, info = loaded
        missing = [key for key in info["missing_keys"] if not key.endswith("position_ids")]
        if missing:
            raise UserError(f"{path} is no whole CLIP model: it lacks {len(missing)} tensors, {missing[0]} among them")
        self.path, self.device = path, torch.device(device)
        self._model = model.eval().requires_grad_(False).to(self.device)
        self._size = int(model.config.vision_config.image_size)
        colours = _preprocessor(place)
        mean, std = (colours.get(key, default) for key, default in (("image_mean", _MEAN), ("image_std", _STD)))
        self._mean, self._std = (torch.tensor(x, device=self.device).view(3, 1, 1) for x in (mean, std))

    @torch.no_grad()
    def pictures(self, rgb: Tensor) -> Tensor:
        """Directions (N, D) of square pictures (N, 3, H, W) in [0, 1]; of length 1."""
        rgb = rgb.to(self.device)
        if rgb.shape[-2:] != (self._size, self._size):
            rgb = F.interpolate(rgb, (self._size, self._size), mode="bicubic", antialias=True).clamp(0, 1)
        pooled = self._model.vision_model(pixel_values=(rgb - self._mean) / self._std).pooler_output
        return F.normalize(self._model.visual_projection(pooled), dim=1)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Directions (P, D) of texts; of length 1."""
        length = int(self._model.config.text_config.max_position_embeddings)
        told = self._tokenizer(
            list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).to(self.device)
        pooled = self._model.text_model(input_ids=told.input_ids, attention_mask=told.attention_mask).pooler_output
        return F.normalize(self._model.text_projection(pooled), dim=1)

    def alignment(self, rgb: Tensor, prompt: str, others: Sequence[str]) -> Alignment:
        """Of an object's views (N, 3, H, W) on white, and its prompt among others."""
        prompts = [prompt, *(other for other in others if other.casefold() != prompt.casefold())]
        cosines = self.pictures(rgb) @ self.texts(prompts).T
        own = cosines.argmax(1) == 0
        return Alignment(float(100 * cosines[:, 0].clamp_min(0).mean()), float(own.double().mean()))


def _preprocessor(folder: Path) -> dict[str, Any]:
    path = folder / "preprocessor_config.json"
    return dict(json.loads(path.read_text())) if path.is_file() else {}
