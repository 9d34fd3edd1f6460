"""A teacher from a diffusers pipeline of any known family, the built-in one among them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from carv3d.cache import cache_folder
from carv3d.cameras import Cameras
from carv3d.errors import UserError
from carv3d.prompts import ViewPrompts, with_views
from carv3d.shapes import parse
from carv3d.teachers.camera_conditioning import camera_vector
from carv3d.teachers.embeddings import Embeddings
from carv3d.teachers.families import Family, Loader, Words, family_of, release, resize
from carv3d.teachers.guidance import classifier_free, perp_neg
from carv3d.teachers.weights import Weights, find

log = logging.getLogger(__name__)

_TEXTS = 64  # encoded together, at most


@dataclass(frozen=True)
class TextCondition:
    """What the network is told of each of N views; texts are mixtures of V known ones.

    Attributes:
        words: of the V texts, shared by all views.
        uncond, cond: (N, V) shares of the texts, which sum to 1.
        negatives: (N, B, V) of Perp-Neg's negatives; B may be 0.
        weights: (N, B), at most 0.
        camera: (N, 4) camera vectors, or None for a teacher that cannot be told.
    """

    words: Words
    uncond: Tensor
    cond: Tensor
    negatives: Tensor
    weights: Tensor
    camera: Tensor | None

    def __getitem__(self, rows: Tensor) -> TextCondition:
        camera = None if self.camera is None else self.camera[rows]
        return TextCondition(
            self.words, self.uncond[rows], self.cond[rows], self.negatives[rows], self.weights[rows], camera
        )

    def mixed(self, shares: Tensor) -> Words:
        """Words (N, ...) of shares (N, V) of the texts."""
        return {
            name: torch.einsum("nv,v...->n...", shares.to(states.dtype), states) for name, states in self.words.items()
        }


class DiffusersTeacher:
    """A frozen diffusion model from a diffusers pipeline; its family is what model_index.json names."""

    joint_views = 1

    def __init__(
        self,
        path: str | Path = "builtin",
        *,
        revision: str = "",
        mirrors: Sequence[str] = (),
        allow_pickle: bool = False,
        dtype: torch.dtype = torch.float32,
        posterior: Literal["mode", "sample"] = "mode",
        camera: Literal["auto", "vector", "none"] = "auto",
        view_words: bool = True,
        views: ViewPrompts | None = None,
        image_size: int = 0,
        cache_text: bool = True,
        channels_last: bool = False,
        compile: bool = False,
        lean: bool = False,
        force: bool = False,
        device: torch.device | str = "cpu",
    ):
        """Find the weights and load them.

        Args:
            path, revision, mirrors, allow_pickle: see `carv3d.teachers.weights.find`.
            dtype: of the networks; latents and residuals are float32 all the same.
            posterior: which latent of the encoder's posterior `encode` returns.
            camera: "vector" tells the U-Net `camera_vector`s, "auto" does so if it takes them.
            view_words: append view words to the prompt.
            views: which angles get which view words, and whether by Perp-Neg.
            image_size: pixels that pictures are resized to; 0 for the size the model was trained at.
            cache_text: keep what texts are encoded to in the cache folder.
            channels_last: lay out convolutions so; may be quicker on a GPU in half precision.
            compile: the denoiser by torch.compile.
            lean: attention and pictures in slices: slower, in less memory.
            force: let the built-in teacher work on prompts with words it never saw.

        Raises:
            UserError: missing, partial or corrupt weights; a pipeline, prediction or schedule that is not known.
        """
        self.builtin = str(path) == "builtin"
        self.force, self.view_words = force, view_words
        self.views = views or ViewPrompts()
        self.device, self.dtype = torch.device(device), dtype
        half = dtype != torch.float32
        self.weights = find(str(path), revision=revision, mirrors=mirrors, half=half, pickle=allow_pickle)
        loader = Loader(self.weights.folder, dtype, self.device, allow_pickle, lean)
        self.family = _load(self.weights, loader, camera, posterior)
        self.schedule, self.takes_camera = self.family.schedule, self.family.takes_camera
        self.image_size = image_size or self.family.image_size
        if self.image_size % self.family.multiple:
            multiple = self.family.multiple
            raise UserError(
                f"teacher.image_size={image_size} must be a multiple of {multiple} for {self.weights.source}"
            )
        if channels_last:
            self.family.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if compile:
            self.family.network.compile()
        key = f"{type(self.family).__name__} {self.weights.revision} {dtype}"
        folder = cache_folder() / "text" if cache_text and not self.builtin else None
        self._words = Embeddings(self._embed, key, self.device, folder)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of the latents of one picture."""
        channels = int(self.family.config.in_channels)
        side = self.image_size // self.family.reduction
        return channels, side, side

    def encode(self, rgb: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """Latents (R, C, h, w), float32, of pictures (R, 3, H, W) in [0, 1]; differentiable."""
        return self.family.encode(resize(rgb, self.image_size), rng)

    def decode(self, z: Tensor) -> Tensor:
        """Pictures (R, 3, H, W) in [0, 1] from latents; no part of a training step."""
        return self.family.decode(z)

    def condition(self, prompt: str, cameras: Cameras, negative: str = "") -> TextCondition:
        """Text (with view words) and camera of each view. Texts are encoded once."""
        words = self._words([*self._texts(prompt), negative])
        if self.view_words:
            cond, negatives, weights = self.views.shares(cameras.azimuth, cameras.elevation)
        else:
            cond = torch.ones(len(cameras), 1)
            negatives, weights = cond.new_zeros(len(cameras), 0, 1), cond.new_zeros(len(cameras), 0)
        cond, negatives = (torch.nn.functional.pad(shares, (0, 1)) for shares in (cond, negatives))
        uncond = torch.zeros_like(cond)
        uncond[:, -1] = 1
        camera = None
        if self.takes_camera:
            camera = camera_vector(cameras.azimuth, cameras.elevation).to(self.device)
        uncond, cond, negatives, weights = (part.to(self.device) for part in (uncond, cond, negatives, weights))
        return TextCondition(words, uncond, cond, negatives, weights, camera)

    def caption_condition(self, captions: Sequence[str], camera: Tensor | None = None) -> TextCondition:
        """A text a row, as it stands, for pictures that have captions rather than a prompt seen from many sides.

        Args:
            captions: N; those that are equal are encoded once.
            camera: (N, 4) of `camera_vector`, zeros where unknown; ignored by a teacher without such an input.
        """
        texts = list(dict.fromkeys([*captions, ""]))
        one = torch.eye(len(texts), device=self.device)
        cond = one[[texts.index(caption) for caption in captions]]
        uncond = one[[texts.index("")] * len(captions)]
        negatives = cond.new_zeros(len(captions), 0, len(texts))
        told = camera.to(self.device) if camera is not None and self.takes_camera else None
        return TextCondition(self._words(texts), uncond, cond, negatives, negatives[..., 0], told)

    def prepare(self, prompts: Sequence[str], negative: str = "") -> None:
        """Encode the texts of many prompts, which `condition` then only looks up, many at a time."""
        texts = [*dict.fromkeys(text for prompt in prompts for text in self._texts(prompt)), negative]
        for first in range(0, len(texts), _TEXTS):
            self._words(texts[first : first + _TEXTS])

    def _texts(self, prompt: str) -> list[str]:
        """What is encoded of a prompt.

        Raises:
            UserError: words that the built-in teacher does not know.
        """
        if self.builtin and not self.force:
            parse(prompt)
        return with_views(prompt) if self.view_words else [prompt]

    @torch.no_grad()
    def residual(self, z: Tensor, t: Tensor, eps: Tensor, condition: TextCondition, scale: float) -> Tensor:
        """See `Teacher.residual`. All branches are one call; the unconditional one is told no camera."""
        alpha, sigma = self.schedule.at(t, z)
        z_t = alpha * z + sigma * eps
        perp = condition.negatives.shape[1] > 0
        branches = [condition.cond, *condition.negatives.unbind(1)]
        if scale != 1 or perp:
            branches = [condition.uncond, *branches]
        camera = condition.camera
        if camera is not None:
            told = [torch.zeros_like(camera)] if scale != 1 or perp else []
            camera = torch.cat([*told, *[camera] * (len(branches) - len(told))])
        words = [condition.mixed(shares) for shares in branches]
        joined = {name: torch.cat([one[name] for one in words]) for name in words[0]}
        count = len(branches)
        every = z_t.repeat(count, *[1] * (z_t.ndim - 1))
        found = self.family.eps_hat(every, t.repeat(count), joined, camera).chunk(count)
        if count == 1:
            return found[0] - eps
        if perp:
            return perp_neg(found[0], found[1], torch.stack(found[2:], 1), condition.weights, scale) - eps
        return classifier_free(found[0], found[1], scale) - eps

    def _embed(self, texts: Sequence[str]) -> Words:
        try:
            with _readable(self.weights):
                return self.family.embed(texts)
        finally:
            release()


def _load(weights: Weights, loader: Loader, camera: Literal["auto", "vector", "none"], posterior: str) -> Family:
    kind = family_of(weights.folder)
    for part in kind.parts:
        if not loader.has(part):
            raise UserError(f"{weights.folder} has no {part}: get the teacher's files again")
    with _readable(weights):
        return kind(loader, camera=camera, posterior=posterior)


@contextmanager
def _readable(weights: Weights) -> Iterator[None]:
    """Turns whatever the libraries raise of files that they cannot read into one line for the user."""
    try:
        yield
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        first = " ".join(str(error).split())[:200]
        if isinstance(error, ImportError) or "sentencepiece" in first or "tiktoken" in first:
            raise UserError(
                f"{weights.source} needs a package that is not installed: pip install carv3d[t5] ({first})"
            ) from error
        raise UserError(
            f"the weights in {weights.folder} cannot be read: get the teacher's files again ({first})"
        ) from error
