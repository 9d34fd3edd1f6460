"""Tiny pipelines of every family, of diffusers' own classes with random weights, written to disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    IFPipeline,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

CHANNELS = (8, 16)
LETTERS, LENGTH = "abcdefghijklmnopqrstuvwxyz,", 16
WORDS = ["a", "view", "front", "side", "back", ","]
NO_CHECKER: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
UNET: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": CHANNELS,
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 2,
    "norm_num_groups": 4,
}
BETAS: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "steps_offset": 1,
}


def make_pipeline(folder: Path, *, camera: bool = False, prediction: str = "epsilon", channels: int = 4) -> Path:
    """Stable Diffusion 1 and 2: pictures of 16 pixels."""
    torch.manual_seed(0)
    told = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 4} if camera else {}
    StableDiffusionPipeline(
        vae=_vae(4, scaling_factor=0.5),
        text_encoder=CLIPTextModel(_clip_config()),
        tokenizer=_clip_tokenizer(),
        unet=UNet2DConditionModel(**UNET, in_channels=channels, cross_attention_dim=8, **told),
        scheduler=DDIMScheduler(prediction_type=prediction, **BETAS),
        **NO_CHECKER,
    ).save_pretrained(folder)
    return folder


def make_sdxl(folder: Path) -> Path:
    """Stable Diffusion XL."""
    torch.manual_seed(0)
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4}
    StableDiffusionXLPipeline(
        vae=_vae(4),
        text_encoder=CLIPTextModel(_clip_config()),
        text_encoder_2=CLIPTextModelWithProjection(_clip_config()),
        tokenizer=_clip_tokenizer(),
        tokenizer_2=_clip_tokenizer(),
        unet=UNet2DConditionModel(
            **UNET, cross_attention_dim=16, **added, projection_class_embeddings_input_dim=6 * 4 + 8
        ),
        scheduler=DDIMScheduler(**BETAS),
        add_watermarker=False,
    ).save_pretrained(folder)
    return folder


def make_sd3(folder: Path, *, t5: bool = True) -> Path:
    """Stable Diffusion 3."""
    torch.manual_seed(0)
    StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=16,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=32,
            caption_projection_dim=16,
            pooled_projection_dim=16,
            out_channels=16,
            pos_embed_max_size=8,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(16, shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=CLIPTextModelWithProjection(_clip_config()),
        tokenizer=_clip_tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(_clip_config()),
        tokenizer_2=_clip_tokenizer(),
        text_encoder_3=_t5(32) if t5 else None,
        tokenizer_3=_t5_tokenizer() if t5 else None,
    ).save_pretrained(folder)
    return folder


def make_deepfloyd(folder: Path) -> Path:
    """DeepFloyd IF's first stage."""
    torch.manual_seed(0)
    IFPipeline(
        unet=UNet2DConditionModel(
            sample_size=16,
            layers_per_block=1,
            block_out_channels=(32, 64),
            down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            in_channels=3,
            out_channels=6,
            cross_attention_dim=32,
            encoder_hid_dim=32,
            attention_head_dim=8,
            addition_embed_type="text",
            addition_embed_type_num_heads=2,
            cross_attention_norm="group_norm",
            resnet_time_scale_shift="scale_shift",
            act_fn="gelu",
        ),
        scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2", variance_type="learned_range", thresholding=True),
        text_encoder=_t5(32),
        tokenizer=_t5_tokenizer(),
        watermarker=None,
        **NO_CHECKER,
    ).save_pretrained(folder)
    return folder


def make_clip(folder: Path) -> Path:
    """A CLIP model that judges pictures of 32 pixels."""
    torch.manual_seed(0)
    text = _clip_config()
    vision = CLIPVisionConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8
    )
    CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)).save_pretrained(
        folder
    )
    _clip_tokenizer().save_pretrained(folder)
    return folder


MAKERS = {"sd": make_pipeline, "sdxl": make_sdxl, "sd3": make_sd3, "deepfloyd": make_deepfloyd}


def _vae(latents: int, **options: Any) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=CHANNELS,
        norm_num_groups=4,
        latent_channels=latents,
        sample_size=16,
        **options,
    )


def _clip_config() -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=2 + 2 * len(LETTERS),
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        projection_dim=8,
        bos_token_id=0,
        eos_token_id=1,
    )


def _clip_tokenizer() -> CLIPTokenizer:
    vocabulary = ["<|startoftext|>", "<|endoftext|>", *(c + end for c in LETTERS for end in ("", "</w>"))]
    return CLIPTokenizer(vocab={w: i for i, w in enumerate(vocabulary)}, merges=[], model_max_length=LENGTH)


def _t5(width: int) -> T5EncoderModel:
    return T5EncoderModel(T5Config(vocab_size=16, d_model=width, d_kv=4, d_ff=16, num_layers=1, num_heads=2))


def _t5_tokenizer() -> PreTrainedTokenizerFast:
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2} | {word: 3 + index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=77
    )
