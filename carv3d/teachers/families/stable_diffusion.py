"""Stable Diffusion 1.x and 2.x, and all pipelines of their classes, such as the built-in teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from carv3d.errors import UserError
from carv3d.teachers.families.base import CLIP_LENGTH, LatentFamily, PromptEmbeddings, clip_states


class StableDiffusion(LatentFamily):
    """A U-Net, conditioned on the embeddings of one CLIP encoder, and on the camera if it has an input for camera
    vectors.
    """

    denoiser = ("UNet2DConditionModel", "unet")
    parts = ("vae", "unet", "text_encoder", "tokenizer", "scheduler")

    def __init__(self, *args: Any, **options: Any) -> None:
        """See `Family`."""
        super().__init__(*args, **options)
        # A network with a camera input always needs a vector: zeros mean an unknown camera.
        self.has_camera = (
            self.config.class_embed_type == "projection" and self.config.projection_class_embeddings_input_dim == 4
        )
        if self.camera == "vector" and not self.has_camera:
            raise UserError(f"{self.loader.folder}: its U-Net takes no camera vector; set teacher.camera=none")
        self.takes_camera = self.has_camera and self.camera != "none"

    def embed(self, texts: Sequence[str]) -> PromptEmbeddings:
        """The last hidden states."""
        from transformers import CLIPTextModel

        return {"text": clip_states(self.loader, CLIPTextModel, "", texts).last_hidden_state}

    def embedding_shapes(self) -> dict[str, tuple[int, ...]]:
        """See `Family`."""
        return {"text": (CLIP_LENGTH, self.config.cross_attention_dim)}

    def predict(self, z_t: Tensor, t: Tensor, embeddings: PromptEmbeddings, camera: Tensor | None) -> Tensor:
        """See `Family`."""
        dtype = self.loader.dtype
        labels = None
        if self.has_camera:
            labels = z_t.new_zeros(len(z_t), 4, dtype=dtype) if camera is None else camera.to(dtype)
        output: Tensor = self.network(z_t.to(dtype), t, embeddings["text"], class_labels=labels, return_dict=False)[0]
        return output.float()
