"""Stable Diffusion XL (Podell et al., arXiv 2307.01952): two text encoders, conditioned also on the picture's size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from carv3d.system.transfer import constant
from carv3d.teachers.families.base import CLIP_LENGTH, LatentFamily, PromptEmbeddings, clip_states


class StableDiffusionXL(LatentFamily):
    """A U-Net, conditioned on the embeddings of both encoders, the second's pooled state, and sizes (section 2.2)."""

    denoiser = ("UNet2DConditionModel", "unet")
    parts = ("vae", "unet", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
    overflows = True  # diffusers issues 7188, 9844

    def embed(self, texts: Sequence[str]) -> PromptEmbeddings:
        """The hidden states before the last, and the pooled state. If the pipeline says so, an empty text has zeros."""
        from transformers import CLIPTextModel, CLIPTextModelWithProjection

        first = clip_states(self.loader, CLIPTextModel, "", texts)
        second = clip_states(self.loader, CLIPTextModelWithProjection, "_2", texts)
        embeddings = {
            "text": torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1),
            "pooled": second.text_embeds,
        }
        if self.loader.index().get("force_zeros_for_empty_prompt", True):
            empty = torch.tensor([not text for text in texts], device=self.loader.device)
            embeddings = {
                name: state.masked_fill(empty.view(-1, *[1] * (state.ndim - 1)), 0)
                for name, state in embeddings.items()
            }
        return embeddings

    def embedding_shapes(self) -> dict[str, tuple[int, ...]]:
        """See `Family`."""
        pooled = self.config.projection_class_embeddings_input_dim - 6 * self.config.addition_time_embed_dim
        return {"text": (CLIP_LENGTH, self.config.cross_attention_dim), "pooled": (pooled,)}

    def predict(self, z_t: Tensor, t: Tensor, embeddings: PromptEmbeddings, camera: Tensor | None) -> Tensor:
        """See `Family`; the picture is told to be whole, at its own size."""
        dtype = self.loader.dtype
        height, width = (side * self.reduction for side in z_t.shape[-2:])
        sizes = constant(z_t, height, width, 0, 0, height, width).to(dtype)
        added = {"text_embeds": embeddings["pooled"], "time_ids": sizes.expand(len(z_t), -1)}
        output: Tensor = self.network(z_t.to(dtype), t, embeddings["text"], added_cond_kwargs=added, return_dict=False)[
            0
        ]
        return output.float()
