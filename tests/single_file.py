"""A tiny Stable Diffusion 1 in one file, with the names that its first authors' code gave to tensors."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def write_single_file(folder: Path, file: Path) -> Path:
    """The networks of a pipeline of `make_pipeline` in one file; its configs and tokenizer beside it."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in load_file(folder / "unet" / "diffusion_pytorch_model.safetensors").items():
        tensors[f"model.diffusion_model.{_unet(name)}"] = tensor
    for name, tensor in load_file(folder / "vae" / "diffusion_pytorch_model.safetensors").items():
        new = _vae(name)
        is_conv = "mid.attn_1" in new and tensor.ndim == 2  # there, attention is by 1 x 1 convolutions
        tensors[f"first_stage_model.{new}"] = tensor[:, :, None, None] if is_conv else tensor
    for name, tensor in load_file(folder / "text_encoder" / "model.safetensors").items():
        tensors[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = tensor
    tensors["model_ema.decay"] = torch.tensor(0.9999)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    shutil.copytree(folder, file.with_suffix(""), ignore=shutil.ignore_patterns("*.safetensors"))
    return file


def _unet(name: str) -> str:
    """Of two blocks down and up, one layer each (two on the way up)."""
    for end, old in _ENDS.items():
        if name.startswith(f"{end}."):
            return name.replace(end, old)
    if found := re.match(r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.*)", name):
        way, block, kind, layer, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
        if kind == "downsamplers":
            return f"input_blocks.{2 * block + 2}.0.{rest.replace('conv', 'op')}"
        if kind == "upsamplers":  # after the block's attention, if it has any
            return f"output_blocks.{2 * block + 1}.{2 if block == 0 else 1}.{rest}"
        place = f"input_blocks.{2 * block + 1}" if way == "down" else f"output_blocks.{2 * block + layer}"
        return f"{place}.{_layer(kind, rest)}"
    found = re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", name)
    assert found, name
    index = 1 if found[1] == "attentions" else 2 * int(found[2])
    return f"middle_block.{index}.{_layer(found[1], found[3]).partition('.')[2]}"


def _layer(kind: str, rest: str) -> str:
    return f"1.{rest}" if kind == "attentions" else f"0.{_renamed(rest, _RESNET)}"


def _vae(name: str) -> str:
    if "quant_conv" in name:
        return name
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    # There, the blocks on the way up count from the last.
    name = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{1 - int(m[1])}.block.{m[2]}", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{1 - int(m[1])}.upsample", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    found = re.match(r"(.*)mid_block\.attentions\.0\.(.*)", name)
    return f"{found[1]}mid.attn_1.{_renamed(found[2], _ATTENTION)}" if found else name


def _renamed(name: str, names: dict[str, str]) -> str:
    for new, old in names.items():
        if name.startswith(f"{new}."):
            return f"{old}{name[len(new) :]}"
    return name
