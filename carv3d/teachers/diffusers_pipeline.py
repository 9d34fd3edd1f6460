"""A teacher from a Stable-Diffusion-style diffusers pipeline folder, the built-in one among them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from carv3d.cameras import Cameras
from carv3d.errors import UserError
from carv3d.prompts import ViewPrompts, with_views
from carv3d.shapes import parse
from carv3d.teachers.base import NoiseSchedule
from carv3d.teachers.camera_conditioning import camera_vector

BUILTIN = Path(__file__).parent / "builtin"


@dataclass(frozen=True)
class TextCondition:
    """What the U-Net is told of each view.

    Attributes:
        text, negative: (N, length, width) hidden states of the text encoder.
        camera: (N, 4) camera vectors, or None for a teacher that cannot be told.
    """

    text: Tensor
    negative: Tensor
    camera: Tensor | None

    def __getitem__(self, rows: Tensor) -> TextCondition:
        camera = None if self.camera is None else self.camera[rows]
        return TextCondition(self.text[rows], self.negative[rows], camera)


class DiffusersTeacher:
    """A frozen latent diffusion model: VAE, U-Net, CLIP text encoder, epsilon or v prediction."""

    def __init__(
        self,
        path: str | Path = "builtin",
        *,
        dtype: torch.dtype = torch.float32,
        posterior: Literal["mode", "sample"] = "mode",
        camera: Literal["auto", "vector", "none"] = "auto",
        view_words: bool = True,
        views: ViewPrompts | None = None,
        image_size: int = 0,
        force: bool = False,
        device: torch.device | str = "cpu",
    ):
        """Load the pipeline.

        Args:
            path: a pipeline folder, a hub id, or "builtin".
            dtype: of the networks; latents and residuals are float32 all the same.
            posterior: which latent of the encoder's posterior `encode` returns.
            camera: "vector" tells the U-Net `camera_vector`s, "auto" does so if it takes them.
            view_words: append view words to the prompt.
            views: which angles get which view words.
            image_size: pixels that pictures are resized to; 0 for the size the model was trained at.
            force: let the built-in teacher work on prompts with words it never saw.

        Raises:
            UserError: missing, partial or corrupt weights; a prediction type that is not known.
        """
        self.builtin = str(path) == "builtin"
        self.force, self.posterior, self.view_words = force, posterior, view_words
        self.views = views or ViewPrompts()
        self.device, self.dtype = torch.device(device), dtype
        source = BUILTIN if self.builtin else path
        try:
            self._load(source)
        except Exception as error:
            raise UserError(_why_not_loaded(source, error)) from error
        self.prediction = self._scheduler_config.get("prediction_type", "epsilon")
        if self.prediction not in ("epsilon", "v_prediction"):
            raise UserError(f"{source}: prediction type {self.prediction!r} is not supported (epsilon, v_prediction)")
        self.schedule = _schedule(self._scheduler_config, source).to(self.device)
        config = self.unet.config
        can = config.class_embed_type == "projection" and config.projection_class_embeddings_input_dim == 4
        if camera == "vector" and not can:
            raise UserError(f"{source}: its U-Net takes no camera vector; set teacher.camera=none")
        self.takes_camera = can and camera != "none"
        # A network with a camera input cannot do without: zeros stand for "camera unknown".
        self._null_camera = torch.zeros(1, 4, device=self.device) if can else None
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.image_size = image_size or config.sample_size * factor
        if self.image_size % factor:
            raise UserError(f"teacher.image_size={image_size} must be a multiple of {factor} for {source}")
        self._texts: dict[str, Tensor] = {}

    def _load(self, source: str | Path) -> None:
        from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTokenizer

        def load(kind: Any, part: str, **options: Any) -> Any:
            options |= {"use_safetensors": True, "output_loading_info": True}
            network, info = kind.from_pretrained(source, subfolder=part, **options)
            # The libraries fill what is missing with random numbers, and only warn.
            missing = sorted(key for key in info["missing_keys"] if not key.endswith("position_ids"))
            if missing:
                raise ValueError(f"{part} lacks {len(missing)} tensors, {missing[0]} among them")
            return network.eval().requires_grad_(False).to(self.device)

        # The networks fit in memory twice while they load; saying so spares a warning for want of accelerate.
        diffusers: dict[str, Any] = {"torch_dtype": self.dtype, "low_cpu_mem_usage": False}
        self.vae = load(AutoencoderKL, "vae", **diffusers)
        self.unet = load(UNet2DConditionModel, "unet", **diffusers)
        self.text_encoder = load(CLIPTextModel, "text_encoder", dtype=self.dtype)
        self.tokenizer = CLIPTokenizer.from_pretrained(source, subfolder="tokenizer")
        self._scheduler_config: dict[str, Any] = DDPMScheduler.load_config(source, subfolder="scheduler")

    def encode(self, rgb: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """Latents (R, C, h, w), float32, of pictures (R, 3, H, W) in [0, 1]; differentiable."""
        if rgb.shape[-2:] != (self.image_size, self.image_size):
            rgb = F.interpolate(rgb, (self.image_size, self.image_size), mode="bilinear", antialias=True)
        posterior = self.vae.encode((rgb * 2 - 1).to(self.dtype)).latent_dist
        z = posterior.mode()
        if self.posterior == "sample":
            draw = torch.randn(z.shape, generator=rng, device=z.device, dtype=torch.float32)
            z = z + posterior.std * draw.to(z.dtype)
        shift = self.vae.config.get("shift_factor") or 0.0
        return (z.float() - shift) * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Pictures (R, 3, H, W) in [0, 1] from latents; no part of a training step."""
        shift = self.vae.config.get("shift_factor") or 0.0
        z = z / self.vae.config.scaling_factor + shift
        return (self.vae.decode(z.to(self.dtype)).sample.float() * 0.5 + 0.5).clamp(0, 1)

    def condition(self, prompt: str, cameras: Cameras, negative: str = "") -> TextCondition:
        """Text (with view words) and camera of each view. Text embeddings are computed once a prompt."""
        if self.builtin and not self.force:
            parse(prompt)
        if self.view_words:
            variants = torch.cat([self._embed(text) for text in with_views(prompt)])
            text = variants[self.views.index(cameras.azimuth, cameras.elevation).to(self.device)]
        else:
            text = self._embed(prompt).expand(len(cameras), -1, -1)
        camera = None
        if self._null_camera is not None:
            camera = self._null_camera.expand(len(cameras), -1)
            if self.takes_camera:
                camera = camera_vector(cameras.azimuth, cameras.elevation).to(self.device)
        return TextCondition(text, self._embed(negative).expand_as(text), camera)

    @torch.no_grad()
    def residual(self, z: Tensor, t: Tensor, eps: Tensor, condition: TextCondition, scale: float) -> Tensor:
        """See `Teacher.residual`. The unconditional branch is told neither text nor camera."""
        alpha, sigma = self.schedule.at(t, z)
        z_t = alpha * z + sigma * eps
        if scale == 1:
            prediction = self._predict(z_t, t, condition.text, condition.camera)
        else:
            camera = condition.camera
            if camera is not None:
                camera = torch.cat([torch.zeros_like(camera), camera])
            text = torch.cat([condition.negative, condition.text])
            uncond, cond = self._predict(torch.cat([z_t, z_t]), torch.cat([t, t]), text, camera).chunk(2)
            prediction = uncond + scale * (cond - uncond)
        if self.prediction == "v_prediction":  # eps_hat = alpha v + sigma z_t
            prediction = alpha * prediction + sigma * z_t
        return prediction - eps

    def _predict(self, z_t: Tensor, t: Tensor, text: Tensor, camera: Tensor | None) -> Tensor:
        labels = None if camera is None else camera.to(self.dtype)
        output = self.unet(z_t.to(self.dtype), t, text, class_labels=labels, return_dict=False)[0]
        return output.float()

    @torch.no_grad()
    def _embed(self, text: str) -> Tensor:
        if text not in self._texts:
            length = min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)
            ids = self.tokenizer(
                [text], padding="max_length", max_length=length, truncation=True, return_tensors="pt"
            ).input_ids
            self._texts[text] = self.text_encoder(ids.to(self.device))[0]
        return self._texts[text]


def _schedule(config: dict[str, Any], source: str | Path) -> NoiseSchedule:
    """The noise schedule that a scheduler's config describes."""
    if config.get("trained_betas") is not None or config.get("rescale_betas_zero_snr"):
        raise UserError(f"{source}: schedulers with trained_betas or rescale_betas_zero_snr are not supported")
    try:
        return NoiseSchedule.of_betas(
            config["beta_schedule"], config["beta_start"], config["beta_end"], config["num_train_timesteps"]
        )
    except (KeyError, ValueError) as error:
        raise UserError(f"{source}: its noise schedule is not supported ({error})") from error


def _why_not_loaded(source: str | Path, error: Exception) -> str:
    """One line for the user from whatever the libraries raised."""
    folder = Path(source)
    first = " ".join(str(error).split())[:200]
    if not folder.exists():
        return f"no teacher at {str(source)!r}: give teacher.path a diffusers pipeline folder or a hub id ({first})"
    if not (folder / "model_index.json").exists():
        return f"{folder} is not a diffusers pipeline folder: model_index.json is missing"
    for part in ("vae", "unet", "text_encoder"):
        if not any((folder / part).glob("*.safetensors")):
            return f"{folder / part} holds no .safetensors weights (pickled .bin files are not read): get them again"
    return f"the weights in {folder} cannot be read: get the teacher's files again ({first})"
