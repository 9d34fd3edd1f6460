"""A pipeline folder of a real model's size with random weights: a teacher of no use but to be timed.

    python scripts/random_teacher.py sd15 outputs/random/sd15

How long a step takes and how much memory does not depend on the weights. The sizes are those of the published
models' configs; of the text encoders, which run once, only the width is.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
SD: dict[str, Any] = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": (CROSS, CROSS, CROSS, PLAIN),
    "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
}
SD2 = {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True}
UNETS: dict[str, dict[str, Any]] = {
    "sd15": {**SD, "cross_attention_dim": 768, "attention_head_dim": 8},
    "sd21-base": {**SD, **SD2},
    "sd21": {**SD, **SD2, "sample_size": 96},
    # Of no real model: with attention at the lowest resolution alone, quick on a CPU.
    "small": {
        "sample_size": 64,
        "block_out_channels": (320, 640, 640),
        "layers_per_block": 1,
        "down_block_types": (PLAIN, PLAIN, CROSS),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        "attention_head_dim": 2,
        "cross_attention_dim": 64,
    },
    # The smallest one, for tests of what is around it: pictures of 64 pixels.
    "tiny": {
        "sample_size": 8,
        "block_out_channels": (320, 640),
        "layers_per_block": 1,
        "down_block_types": (PLAIN, CROSS),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 2,
        "cross_attention_dim": 64,
    },
    "sdxl": {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": (PLAIN, CROSS, CROSS),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
VAE_CHANNELS = (128, 256, 512, 512)
LENGTH = 77


def make(name: str, folder: Path, *, dtype: torch.dtype = torch.float16, divide: int = 1, groups: int = 32) -> Path:
    """Write the folder, if it is not there yet.

    Args:
        name: of `UNETS`.
        folder: new; made whole or not at all.
        dtype: of the files.
        divide: the channels' number by it, for a try.
        groups: of the normalisations; channels are multiples of it.
    """
    if (folder / "model_index.json").is_file():
        return folder
    diffusers.logging.set_verbosity_error()  # it warns of casts, which nothing here depends on
    torch.manual_seed(0)
    sizes = UNETS[name]
    channels = tuple(width // divide for width in sizes["block_out_channels"])
    parts: dict[str, Any] = {
        "unet": UNet2DConditionModel(**{**sizes, "block_out_channels": channels, "norm_num_groups": groups}),
        "vae": AutoencoderKL(
            block_out_channels=tuple(max(groups, width // divide // groups * groups) for width in VAE_CHANNELS),
            norm_num_groups=groups,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
            sample_size=512,
        ),
        "scheduler": DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            steps_offset=1,
            prediction_type="v_prediction" if name == "sd21" else "epsilon",
        ),
    }
    kind: Any = StableDiffusionPipeline
    if name == "sdxl":
        kind = StableDiffusionXLPipeline
        parts |= {"text_encoder": CLIPTextModel(_text(768)), "tokenizer": _tokenizer()}
        parts |= {"text_encoder_2": CLIPTextModelWithProjection(_text(1280)), "tokenizer_2": _tokenizer()}
        parts |= {"add_watermarker": False}
    else:
        parts |= {"text_encoder": CLIPTextModel(_text(sizes["cross_attention_dim"])), "tokenizer": _tokenizer()}
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    half_made = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(half_made, ignore_errors=True)
    kind(**parts).to(dtype=dtype).save_pretrained(half_made)
    half_made.rename(folder)
    return folder


def _text(width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=64,
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=2,
        num_attention_heads=width // 64,
        projection_dim=width,
        max_position_embeddings=LENGTH,
        bos_token_id=0,
        eos_token_id=1,
    )


def _tokenizer() -> CLIPTokenizer:
    letters = "abcdefghijklmnopqrstuvwxyz,"
    words = ["<|startoftext|>", "<|endoftext|>", *(c + end for c in letters for end in ("", "</w>"))]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=LENGTH)


def main() -> None:
    """Write a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=UNETS)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    print(make(options.name, options.folder))


if __name__ == "__main__":
    main()
