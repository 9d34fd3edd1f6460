"""Stable Diffusion 3 (Esser et al., arXiv 2403.03206): flow matching, a transformer, three text encoders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from carv3d.teachers.families.base import CLIP_LENGTH, LatentFamily, PromptEmbeddings, clip_states, t5_states

T5_LENGTH = 256  # tokens, as in diffusers' pipeline


class StableDiffusion3(LatentFamily):
    """A transformer, conditioned on embeddings of two CLIP encoders and of T5, which may be absent, and on the pooled
    states.
    """

    denoiser = ("SD3Transformer2DModel", "transformer")
    parts = ("vae", "transformer", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")

    def __init__(self, *args: Any, **options: Any) -> None:
        """See `Family`."""
        super().__init__(*args, **options)
        self._width = self.config.joint_attention_dim
        self.multiple *= self.config.patch_size

    def embed(self, texts: Sequence[str]) -> PromptEmbeddings:
        """The states of both CLIP encoders, concatenated along the width and padded to T5's, followed by T5's states
        (section 4).
        """
        from transformers import CLIPTextModelWithProjection

        both = [clip_states(self.loader, CLIPTextModelWithProjection, number, texts) for number in ("", "_2")]
        clip = torch.cat([states.hidden_states[-2] for states in both], -1)
        clip = F.pad(clip, (0, self._width - clip.shape[-1]))
        if self.loader.has("text_encoder_3"):
            t5 = t5_states(self.loader, "_3", texts, T5_LENGTH, masked=False)
        else:
            t5 = clip.new_zeros(len(texts), T5_LENGTH, self._width)
        return {
            "text": torch.cat([clip, t5.to(clip.dtype)], 1),
            "pooled": torch.cat([states.text_embeds for states in both], -1),
        }

    def embedding_shapes(self) -> dict[str, tuple[int, ...]]:
        """See `Family`."""
        return {"text": (CLIP_LENGTH + T5_LENGTH, self._width), "pooled": (self.config.pooled_projection_dim,)}

    def predict(self, z_t: Tensor, t: Tensor, embeddings: PromptEmbeddings, camera: Tensor | None) -> Tensor:
        """See `Family`; the velocity."""
        output: Tensor = self.network(
            hidden_states=z_t.to(self.loader.dtype),
            timestep=self.schedule.times[t],
            encoder_hidden_states=embeddings["text"],
            pooled_projections=embeddings["pooled"],
            return_dict=False,
        )[0]
        return output.float()
