"""The common base of all families of pipelines: loading of parts, pictures, predictions."""

from __future__ import annotations

import gc
import json
import logging
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from carv3d.errors import UserError
from carv3d.teachers.schedule import NoiseSchedule, is_flow

log = logging.getLogger(__name__)

KEPT = 2**26  # bytes of the largest text encoder that is not released
CLIP_LENGTH = 77  # tokens of the CLIP encoders in use

# The embeddings of V texts by name, (V, ...) each.
PromptEmbeddings = dict[str, Tensor]


@dataclass(frozen=True)
class Loader:
    """Loads parts of a diffusers pipeline folder.

    Attributes:
        folder: with model_index.json.
        dtype: of the networks.
        device: where they go.
        pickle: whether weights may be pickled .bin files, which can run any code.
        lean: compute attention and pictures in slices: slower, in less memory.
    """

    folder: Path
    dtype: torch.dtype
    device: torch.device
    pickle: bool = False
    lean: bool = False
    _small: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def text_encoder(self, kind: Any, part: str) -> Any:
        """A text encoder; a small one is kept in memory for the next text."""
        if part not in self._small:
            encoder = self.network(kind, part)
            if sum(p.numel() * p.element_size() for p in encoder.parameters()) > KEPT:
                return encoder
            self._small[part] = encoder
        return self._small[part]

    def has(self, part: str) -> bool:
        """Whether the folder has the part."""
        return (self.folder / part).is_dir()

    def network(self, kind: Any, part: str) -> Any:
        """A frozen network, with all its tensors.

        Raises:
            ValueError: tensors are missing, which the libraries would fill with random numbers.
        """
        from diffusers.utils.import_utils import is_accelerate_available

        pickled = self.pickle and not any((self.folder / part).glob("*.safetensors"))
        options: dict[str, Any] = {"use_safetensors": not pickled, "output_loading_info": True}
        of_diffusers = kind.__module__.startswith("diffusers")
        if of_diffusers:
            # Without accelerate a network is in memory twice while it loads; the explicit option avoids a warning.
            options |= {"torch_dtype": self.dtype, "low_cpu_mem_usage": is_accelerate_available()}
        else:
            options |= {"dtype": self.dtype}
        if variant := self._variant(part):
            options["variant"] = variant
        with _without_bars():
            network, info = kind.from_pretrained(self.folder, subfolder=part, **options)
        missing = sorted(key for key in info["missing_keys"] if not key.endswith("position_ids"))
        if missing:
            raise ValueError(f"{part} lacks {len(missing)} tensors, {missing[0]} among them")
        if self.lean and hasattr(network, "set_attention_slice"):
            network.set_attention_slice("auto")
        if self.lean and hasattr(network, "enable_slicing"):
            network.enable_slicing()
        network = network.eval().requires_grad_(False).to(self.device)
        # Some buffers and layers keep their own number format.
        return torch.nn.Module.to(network, self.dtype) if of_diffusers else network

    def tokenizer(self, kind: Any, part: str) -> Any:
        """A tokenizer."""
        return kind.from_pretrained(self.folder, subfolder=part)

    def config(self, part: str) -> dict[str, Any]:
        """The config file of a part; empty if there is none."""
        for name in ("config.json", f"{part}_config.json"):
            path = self.folder / part / name
            if path.exists():
                return dict(json.loads(path.read_text()))
        return {}

    def index(self) -> dict[str, Any]:
        """The pipeline's own options."""
        return dict(json.loads((self.folder / "model_index.json").read_text()))

    def _variant(self, part: str) -> str | None:
        """The variant of the files: fp16, if the part has only such weights."""
        names = [path.name for path in (self.folder / part).glob("*.safetensors")]
        return "fp16" if names and all(".fp16" in name for name in names) else None


@contextmanager
def _without_bars() -> Iterator[None]:
    """transformers draws a bar for every network, though a small one is there at once."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


class Family(ABC):
    """A loaded pipeline of one family. Its text encoders are loaded only when there is a text to encode.

    Attributes:
        loader: of its parts.
        network: the frozen denoiser.
        prediction: what it predicts: "epsilon", "v_prediction" or "flow".
        schedule: see `NoiseSchedule`.
        image_size: pixels.
        reduction: pixels along a side for one latent.
        multiple: pictures' sides must be multiples of it.
        takes_camera: whether `predict` uses camera vectors.
    """

    network: nn.Module
    image_size: int
    reduction: int = 1
    multiple: int = 1
    takes_camera: bool = False
    denoiser: tuple[str, str]  # its class in diffusers, and its subfolder
    parts: tuple[str, ...]  # parts that a folder of the family must have

    def __init__(self, loader: Loader, *, camera: Literal["auto", "vector", "none"], posterior: str) -> None:
        """Load the denoiser and the encoder of pictures.

        Args:
            loader: of the folder.
            camera: see `carv3d.teachers.DiffusersTeacher`.
            posterior: see `carv3d.teachers.config.DiffusersTeacherConfig`.

        Raises:
            UserError: a prediction or a schedule that is not supported.
        """
        import diffusers

        self.loader, self.camera, self.posterior = loader, camera, posterior
        config = loader.config("scheduler")
        try:
            self.schedule = NoiseSchedule.of_config(config).to(loader.device)
        except ValueError as error:
            raise UserError(f"{loader.folder}: its noise schedule is not supported ({error})") from error
        self.prediction = "flow" if is_flow(config) else config.get("prediction_type", "epsilon")
        if self.prediction not in ("epsilon", "v_prediction", "flow"):
            raise UserError(
                f"{loader.folder}: prediction type {self.prediction!r} is not supported (epsilon, v_prediction, flow)"
            )
        kind, part = self.denoiser
        self.network = loader.network(getattr(diffusers, kind), part)
        self.image_size = self.config.sample_size

    @property
    def config(self) -> Any:
        """The device of the denoiser."""
        return self.network.config

    @abstractmethod
    def encode(self, rgb: Tensor, rng: torch.Generator | None) -> Tensor:
        """(R, C, h, w) float32 of pictures (R, 3, image_size, image_size) in [0, 1]; differentiable."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Pictures (R, 3, H, W) in [0, 1]."""

    @abstractmethod
    def embed(self, texts: Sequence[str]) -> PromptEmbeddings:
        """The embeddings of V texts; loads the text encoders, and releases them."""

    @abstractmethod
    def embedding_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of one text's embeddings by name."""

    @abstractmethod
    def predict(self, z_t: Tensor, t: Tensor, embeddings: PromptEmbeddings, camera: Tensor | None) -> Tensor:
        """The network's raw prediction (N, C, h, w), float32, for N rows of everything."""

    def cast(self, embeddings: PromptEmbeddings) -> PromptEmbeddings:
        """The embeddings in the network's number format; text encoders may have another."""
        return {name: states.to(self.loader.dtype) for name, states in embeddings.items()}

    def eps_hat(self, z_t: Tensor, t: Tensor, embeddings: PromptEmbeddings, camera: Tensor | None) -> Tensor:
        """The predicted noise in z_t.

        From v: `alpha v + sigma z_t` (Salimans and Ho, arXiv 2202.00512). From a flow's velocity, which is of
        `eps - z`: `z_t + alpha v`, since `z_t = alpha z + sigma eps` and `alpha + sigma = 1`.
        """
        prediction = self.predict(z_t, t, self.cast(embeddings), camera)
        alpha, sigma = self.schedule.at(t, z_t)
        match self.prediction:
            case "v_prediction":
                return alpha * prediction + sigma * z_t
            case "flow":
                return z_t + alpha * prediction
        return prediction


class LatentFamily(Family):
    """A family with a VAE.

    Attributes:
        vae: frozen.
        overflows: whether the VAE leaves the range of float16. Then it is computed in float32, unless its config says
            `force_upcast: false`, as that of a VAE that was made for float16.
    """

    vae: Any
    overflows: bool = False

    def __init__(self, *args: Any, **options: Any) -> None:
        """See `Family`."""
        from diffusers import AutoencoderKL

        super().__init__(*args, **options)
        self.vae = self.loader.network(AutoencoderKL, "vae")
        if self.overflows and self.vae.dtype == torch.float16 and self.vae.config.get("force_upcast", True):
            self.vae.to(torch.float32)
            log.info("the VAE is computed in float32: this one overflows in float16")
        self.reduction = self.multiple = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.image_size *= self.reduction
        made, taken = self.vae.config.latent_channels, self.config.in_channels
        if made != taken:
            raise UserError(
                f"{self.loader.folder}: its VAE makes latents of {made} channels and its denoiser takes {taken}: "
                "models for inpainting, depth and the like are not supported"
            )

    def encode(self, rgb: Tensor, rng: torch.Generator | None) -> Tensor:
        """See `Family`."""
        posterior = self.vae.encode((rgb * 2 - 1).to(self.vae.dtype)).latent_dist  # it may have another number format
        z = posterior.mode()
        if self.posterior == "sample":
            draw = torch.randn(z.shape, generator=rng, device=z.device, dtype=torch.float32)
            z = z + posterior.std * draw.to(z.dtype)
        return (z.float() - self._shift) * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """See `Family`; no part of a training step."""
        z = z / self.vae.config.scaling_factor + self._shift
        return (self.vae.decode(z.to(self.vae.dtype)).sample.float() * 0.5 + 0.5).clamp(0, 1)

    @property
    def _shift(self) -> float:
        return float(self.vae.config.get("shift_factor") or 0.0)


def resize(rgb: Tensor, size: int) -> Tensor:
    """Pictures (R, 3, H, W) as (R, 3, size, size)."""
    if rgb.shape[-2:] == (size, size):
        return rgb
    return F.interpolate(rgb, (size, size), mode="bilinear", antialias=True)


def tokens(tokenizer: Any, texts: Sequence[str], length: int, device: torch.device) -> Any:
    """Token ids and attention mask (V, length), padded or truncated; a warning names truncated words."""
    for ids in tokenizer(list(texts), verbose=False).input_ids:
        if len(ids) > length:
            lost = tokenizer.decode(ids[length - 1 :], skip_special_tokens=True)  # the end token takes one place
            said = textwrap.shorten(lost, 100)
            log.warning("a prompt is too long: a text encoder takes %d tokens, and is not told %r", length, said)
    found = tokenizer(list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return found.to(device)


@torch.no_grad()
def clip_states(loader: Loader, kind: Any, number: str, texts: Sequence[str]) -> Any:
    """All outputs of a CLIP text encoder of the folder for V texts, hidden states included.

    Args:
        loader: of the folder.
        kind: the encoder's class.
        number: "" or "_2", of the encoder.
        texts: V.
    """
    from transformers import CLIPTokenizer

    encoder = loader.text_encoder(kind, f"text_encoder{number}")
    tokenizer = loader.tokenizer(CLIPTokenizer, f"tokenizer{number}")
    length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
    ids = tokens(tokenizer, texts, length, loader.device).input_ids
    return encoder(ids, output_hidden_states=True)


@torch.no_grad()
def t5_states(loader: Loader, number: str, texts: Sequence[str], length: int, *, masked: bool) -> Tensor:
    """The last hidden states (V, length, width) of a T5 encoder of the folder."""
    from transformers import AutoTokenizer, T5EncoderModel

    encoder = loader.text_encoder(T5EncoderModel, f"text_encoder{number}")
    found = tokens(loader.tokenizer(AutoTokenizer, f"tokenizer{number}"), texts, length, loader.device)
    states: Tensor = encoder(found.input_ids, attention_mask=found.attention_mask if masked else None)[0]
    return states


def release() -> None:
    """Free the GPU memory of released text encoders."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
