"""A teacher from a diffusers pipeline of a known family. The built-in teacher is one."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from carv3d.cameras import Cameras
from carv3d.errors import UserError
from carv3d.guidance import Branch
from carv3d.prompts.config import ViewsConfig
from carv3d.prompts.views import ViewPrompts, with_views
from carv3d.shapes import parse
from carv3d.system.cache import cache_folder
from carv3d.teachers.camera_conditioning import camera_vector
from carv3d.teachers.config import DiffusersTeacherConfig
from carv3d.teachers.denoiser import Denoiser
from carv3d.teachers.embeddings import EmbeddingCache
from carv3d.teachers.families import Family, Loader, PromptEmbeddings, family_of, family_of_pipeline, release, resize
from carv3d.teachers.families.loaded import LoadedParts
from carv3d.teachers.text_condition import TextCondition, joined
from carv3d.teachers.weights import Weights, find

log = logging.getLogger(__name__)

_TEXTS = 64  # most texts in one encoding


class DiffusersTeacher:
    """A frozen diffusion model from a diffusers pipeline, loaded from files or in memory.

    Attributes:
        family: encodes texts and predicts, for its kind of pipeline.
        weights: the files that it was loaded from; None for a pipeline in memory.
        builtin: whether it is the small model that comes with carv3d.
    """

    joint_views = 1
    branches: tuple[Branch, ...] = ("uncond", "cond", "negatives")
    weights: Weights | None

    def __init__(
        self,
        config: DiffusersTeacherConfig | None = None,
        *,
        views: ViewsConfig | None = None,
        force: bool = False,
        device: torch.device | str = "cpu",
    ):
        """Find the weights and load them.

        Args:
            config: which pipeline, and how it is used; by default the built-in one. Latents and residuals are float32
                whatever the number format of the networks.
            views: which angles get which view words, and whether by Perp-Neg.
            force: let the built-in teacher work on prompts with words that it does not know.
            device: of the networks.

        Raises:
            UserError: missing, partial or corrupt weights; a pipeline, prediction or schedule that is not known.
        """
        config = DiffusersTeacherConfig() if config is None else config
        if not isinstance(config, DiffusersTeacherConfig):
            raise TypeError(
                f"a teacher's config is a DiffusersTeacherConfig, not a {type(config).__name__}: wrap a pipeline "
                "that is in memory with carv3d.from_pipeline(pipe)"
            )
        device = torch.device(device)
        dtype: torch.dtype = getattr(torch, config.dtype)
        self.builtin, self.force = config.builtin_world, force
        weights = find(
            config.path,
            revision=config.revision,
            mirrors=config.mirrors,
            half=dtype != torch.float32,
            pickle=config.allow_pickle,
        )
        loader = Loader(weights.folder, dtype, device, config.allow_pickle, config.lean)
        family = _load(weights, loader, config.camera, config.posterior)
        if config.channels_last:
            family.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if config.compile:
            family.network.compile()
        cached = config.cache_text and not self.builtin
        self._adopt(family, weights, config.image_size, views, config.view_words, cached)

    @classmethod
    def from_pipeline(
        cls,
        pipe: Any,
        *,
        posterior: Literal["mode", "sample"] = DiffusersTeacherConfig.posterior,
        camera: Literal["auto", "vector", "none"] = DiffusersTeacherConfig.camera,
        view_words: bool = DiffusersTeacherConfig.view_words,
        views: ViewsConfig | None = None,
        image_size: int = DiffusersTeacherConfig.image_size,
    ) -> DiffusersTeacher:
        """A teacher from a diffusers pipeline in memory. It shares the networks, with all changes that were made to
        them.

        LoRA weights, merged tokens, quantised layers and compiled networks are kept. The networks are frozen
        and set to evaluation. Their device and number format are kept. Prompt embeddings are not cached on disk,
        because the text encoders may have been changed.

        Args:
            pipe: a StableDiffusionPipeline, StableDiffusionXLPipeline, StableDiffusion3Pipeline or IFPipeline.
            posterior, camera, view_words, image_size: see `DiffusersTeacherConfig`.
            views: see the constructor.

        Raises:
            UserError: another pipeline, parts that are missing or on different devices, or see the constructor.
        """
        teacher = cls.__new__(cls)
        teacher.builtin, teacher.force = False, True
        kind = family_of_pipeline(pipe)
        family = kind(LoadedParts.of(pipe, kind.parts), camera=camera, posterior=posterior)
        teacher._adopt(family, None, image_size, views, view_words, cached=False)
        return teacher

    def _adopt(
        self,
        family: Family,
        weights: Weights | None,
        image_size: int,
        views: ViewsConfig | None,
        view_words: bool,
        cached: bool,
    ) -> None:
        self.family, self.weights = family, weights
        self.device, self.dtype = family.loader.device, family.loader.dtype
        self.views, self.view_words = ViewPrompts(**vars(views or ViewsConfig())), view_words
        self.schedule, self.takes_camera = family.schedule, family.takes_camera
        self.image_size = image_size or family.image_size
        if self.image_size % family.multiple:
            raise UserError(
                f"teacher.image_size={image_size} must be a multiple of {family.multiple} for {self.source}"
            )
        key = f"{type(family).__name__} {weights.revision if weights else ''} {self.dtype}"
        folder = cache_folder() / "text" if cached else None
        self._embeddings = EmbeddingCache(self._embed, key, self.device, folder)

    @property
    def source(self) -> str:
        """The source of the weights, for messages."""
        return self.weights.source if self.weights else str(self.family.loader.folder)

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
        """The condition of each view: text with view words, and camera. Texts are encoded once."""
        embeddings = self._embeddings([*self._texts(prompt), negative])
        if self.view_words:
            cond, negatives, weights = self.views.shares(cameras.azimuth, cameras.elevation)
        else:
            cond = torch.ones(len(cameras), 1, device=self.device)
            negatives, weights = cond.new_zeros(len(cameras), 0, 1), cond.new_zeros(len(cameras), 0)
        cond, negatives = (torch.nn.functional.pad(shares, (0, 1)) for shares in (cond, negatives))
        uncond = torch.zeros_like(cond)
        uncond[:, -1] = 1
        camera = None
        if self.takes_camera:
            camera = camera_vector(cameras.azimuth, cameras.elevation).to(self.device)
        uncond, cond, negatives, weights = (part.to(self.device) for part in (uncond, cond, negatives, weights))
        return TextCondition(embeddings, uncond, cond, negatives, weights, camera)

    def text_condition(
        self,
        prompts: str | Sequence[str],
        *,
        negative: str = "",
        azimuth: Tensor | None = None,
        elevation: Tensor | None = None,
    ) -> TextCondition:
        """The condition of R renders, from texts, and from angles if they are given.

        Args:
            prompts: R texts; or one, for all angles or for one render.
            negative: the text of the unconditional branch.
            azimuth: (R,) degrees, 0 in front of the object. With angles, view words are appended to the prompts (unless
                `view_words` is off), and a model that takes cameras gets them. Without angles texts are used
                literally, and the camera is unknown.
            elevation: (R,) degrees above the horizon; 0 if only the azimuth is given.

        Raises:
            ValueError: numbers of prompts and angles that do not fit.
            UserError: words that the built-in teacher does not know.
        """
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        if azimuth is None:
            if elevation is not None:
                raise ValueError("elevation without azimuth: give both, or neither")
            return self.caption_condition(texts, negative=negative)
        azimuth = torch.as_tensor(azimuth, dtype=torch.float32).flatten()
        elevation = torch.zeros_like(azimuth) if elevation is None else torch.as_tensor(elevation).flatten()
        if len(texts) == 1 and len(azimuth) == len(elevation):
            return self.condition(texts[0], Cameras.look_at_origin(azimuth, elevation), negative)
        if not len(texts) == len(azimuth) == len(elevation):
            raise ValueError(
                f"{len(texts)} prompts, {len(azimuth)} azimuths and {len(elevation)} elevations do not fit: "
                "give one prompt, or as many as angles"
            )
        rows = [
            self.condition(text, Cameras.look_at_origin(azimuth[i : i + 1], elevation[i : i + 1]), negative)
            for i, text in enumerate(texts)
        ]
        return joined(rows)

    def caption_condition(
        self, captions: Sequence[str], camera: Tensor | None = None, *, negative: str = ""
    ) -> TextCondition:
        """A condition of one literal text a row, for pictures with captions.

        Args:
            captions: N; those that are equal are encoded once.
            camera: (N, 4) of `camera_vector`, zeros where unknown; ignored by a teacher without such an input.
            negative: the text of the unconditional branch.
        """
        texts = list(dict.fromkeys([*captions, negative]))
        one = torch.eye(len(texts), device=self.device)
        cond = one[[texts.index(caption) for caption in captions]]
        uncond = one[[texts.index(negative)] * len(captions)]
        negatives = cond.new_zeros(len(captions), 0, len(texts))
        told = camera.to(self.device) if camera is not None and self.takes_camera else None
        return TextCondition(self._embeddings(texts), uncond, cond, negatives, negatives[..., 0], told)

    def embeddings_condition(
        self,
        cond: PromptEmbeddings,
        uncond: PromptEmbeddings,
        negatives: PromptEmbeddings | None = None,
        weights: Tensor | None = None,
        *,
        camera: Tensor | None = None,
    ) -> TextCondition:
        """A condition of given prompt embeddings.

        Args:
            cond, uncond: (R, ...) of each render, by the names in `family.embedding_shapes()`.
            negatives: (R, B, ...) of Perp-Neg's negatives.
            weights: (R, B) of the negatives, at most 0.
            camera: see `caption_condition`.

        Raises:
            ValueError: other names, or shapes that do not fit.
        """
        names, rows = self.family.embedding_shapes(), len(next(iter(cond.values())))
        given = [cond, uncond, *([negatives] if negatives is not None else [])]
        if any(set(words) != set(names) for words in given):
            raise ValueError(f"the words of a {type(self.family).__name__} are {', '.join(names)}")
        count = 0 if negatives is None else next(iter(negatives.values())).shape[1]
        if weights is None:
            weights = torch.zeros(rows, count)
        if weights.shape != (rows, count) or any(len(states) != rows for words in given for states in words.values()):
            raise ValueError(f"the words and weights of {rows} renders and {count} negatives do not fit each other")
        embeddings = {name: torch.cat([cond[name], uncond[name]]) for name in names}
        if negatives is not None:
            embeddings = {
                name: torch.cat([states, negatives[name].flatten(0, 1)]) for name, states in embeddings.items()
            }
        one = torch.eye(rows * (2 + count), device=self.device)
        told = camera.to(self.device) if camera is not None and self.takes_camera else None
        return TextCondition(
            {name: states.to(self.device) for name, states in embeddings.items()},
            uncond=one[rows : 2 * rows],
            cond=one[:rows],
            negatives=one[2 * rows :].view(rows, count, len(one)),
            weights=weights.to(self.device, torch.float32),
            camera=told,
        )

    def prepare(self, prompts: Sequence[str], negative: str = "") -> None:
        """Encode the texts of many prompts in large batches; `condition` then only looks them up."""
        texts = [*dict.fromkeys(text for prompt in prompts for text in self._texts(prompt)), negative]
        for first in range(0, len(texts), _TEXTS):
            self._embeddings(texts[first : first + _TEXTS])

    def _texts(self, prompt: str) -> list[str]:
        """The texts of a prompt: one for each view, or the prompt alone.

        Raises:
            UserError: words that the built-in teacher does not know.
        """
        if self.builtin and not self.force:
            parse(prompt)
        return with_views(prompt) if self.view_words else [prompt]

    def predict(
        self, z_t: Tensor, t: Tensor, condition: TextCondition, branches: Sequence[Branch]
    ) -> dict[Branch, Tensor]:
        """See `ScoreModel.predict`. All branches are one call; the unconditional one is told no camera.

        A gradient flows to z_t and to the network's parameters where they ask for one.
        """
        texts: list[Tensor] = []
        counts: dict[Branch, int] = {}
        cameras: list[Tensor] = []
        for branch in branches:
            shares = {
                "uncond": (condition.uncond,),
                "cond": (condition.cond,),
                "negatives": condition.negatives.unbind(1),
            }[branch]
            counts[branch] = len(shares)
            texts += shares
            if condition.camera is not None:
                told = torch.zeros_like(condition.camera) if branch == "uncond" else condition.camera
                cameras += [told] * len(shares)
        embeddings = [condition.mixed(shares) for shares in texts]
        joined_embeddings = {name: torch.cat([one[name] for one in embeddings]) for name in embeddings[0]}
        camera = torch.cat(cameras) if cameras else None
        every = z_t.repeat(len(texts), *[1] * (z_t.ndim - 1))
        rows = iter(self.family.eps_hat(every, t.repeat(len(texts)), joined_embeddings, camera).chunk(len(texts)))
        found: dict[Branch, Tensor] = {}
        for branch, count in counts.items():
            parts = [next(rows) for _ in range(count)]
            if branch == "negatives":
                found[branch] = torch.stack(parts, 1) if parts else z_t.new_zeros(len(z_t), 0, *z_t.shape[1:])
            else:
                (found[branch],) = parts
        return found

    def trainable(self, *, rank: int, seed: int) -> Denoiser:
        """A network that starts as this teacher's and can be trained, see `Denoiser`.

        Raises:
            UserError: see `Denoiser`.
        """
        return Denoiser(self.family, rank=rank, seed=seed)

    def _embed(self, texts: Sequence[str]) -> PromptEmbeddings:
        try:
            if self.weights is None:
                return self.family.embed(texts)
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
    """Turns errors of the libraries about unreadable files into a UserError of one line."""
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
