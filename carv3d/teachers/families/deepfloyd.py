"""DeepFloyd IF's first stage: diffusion of pixels, conditioned on T5 embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from carv3d.teachers.families.base import Family, PromptEmbeddings, t5_states

LENGTH = 77  # tokens in its training


class DeepFloyd(Family):
    """A U-Net on pixels in [-1, 1]; its prediction of the variance is ignored."""

    denoiser = ("UNet2DConditionModel", "unet")
    parts = ("unet", "text_encoder", "tokenizer", "scheduler")

    def __init__(self, *args: Any, **options: Any) -> None:
        """See `Family`."""
        super().__init__(*args, **options)
        self.multiple = 2 ** (len(self.config.block_out_channels) - 1)

    def encode(self, rgb: Tensor, rng: torch.Generator | None) -> Tensor:
        """See `Family`."""
        return rgb * 2 - 1

    def decode(self, z: Tensor) -> Tensor:
        """See `Family`."""
        return (z * 0.5 + 0.5).clamp(0, 1)

    def embed(self, texts: Sequence[str]) -> PromptEmbeddings:
        """T5's last hidden states, with masked padding."""
        lower = [text.lower().strip() for text in texts]  # as in the model's own pipeline
        return {"text": t5_states(self.loader, "", lower, LENGTH, masked=True)}

    def embedding_shapes(self) -> dict[str, tuple[int, ...]]:
        """See `Family`."""
        return {"text": (LENGTH, self.config.encoder_hid_dim or self.config.cross_attention_dim)}

    def predict(self, z_t: Tensor, t: Tensor, embeddings: PromptEmbeddings, camera: Tensor | None) -> Tensor:
        """See `Family`."""
        output: Tensor = self.network(z_t.to(self.loader.dtype), t, embeddings["text"], return_dict=False)[0]
        return output[:, : z_t.shape[1]].float()
