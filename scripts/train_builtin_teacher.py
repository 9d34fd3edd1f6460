"""Make the built-in teacher: data, autoencoder, tokenizer, U-Net with text encoder, pipeline folder.

    python scripts/train_builtin_teacher.py --work outputs/builtin_teacher

Every stage is seeded and resumes from its last checkpoint; with `--stop-after` one stage is run. Losses go to
`log.jsonl` and sample grids to `*.png` in the work folder. The result is `pipeline/`, in the layout of
diffusers' StableDiffusionPipeline, in half precision; `--install` copies it into the package.
`python -m scripts.benchmarks teacher FOLDER` measures it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import time
from collections.abc import Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from safetensors.torch import save as to_bytes
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from carv3d.cameras import Cameras
from carv3d.images import sheet, write_png
from carv3d.prompts.views import VIEWS, ViewPrompts
from carv3d.runs import replace_file
from carv3d.shapes import COLOURS, SHAPES, Thing, colourise, palette, shade_maps, training_views
from carv3d.system.arithmetic import autocast
from carv3d.teachers import DiffusersTeacher
from carv3d.teachers.camera_conditioning import camera_vector
from carv3d.teachers.config import DiffusersTeacherConfig
from carv3d.teachers.ddim import ddim_sample

SIZE, LATENT_CHANNELS, TEXT_LENGTH = 64, 8, 16
STAGES = ("data", "autoencoder", "unet", "pipeline")
BUILTIN = Path(__file__).resolve().parents[1] / "carv3d" / "teachers" / "builtin"


def log(work: Path, **record: Any) -> None:
    """One line of figures to the terminal and to log.jsonl."""
    line = json.dumps({k: round(v, 5) if isinstance(v, float) else v for k, v in record.items()})
    print(line, flush=True)
    with (work / "log.jsonl").open("a") as file:
        file.write(line + "\n")


class Trainer:
    """AdamW with gradient clipping, checkpointed with its moments and its generator."""

    def __init__(self, path: Path, module: torch.nn.Module, ema: torch.nn.Module | None, weight_decay: float):
        self.path, self.module, self.ema = path, module, ema
        self.optimizer = torch.optim.AdamW(module.parameters(), betas=(0.9, 0.99), weight_decay=weight_decay)
        self.generator = torch.Generator().manual_seed(0)
        self.step = 0
        if path.exists():
            self._load()

    def update(self, loss: Tensor, lr: float) -> None:
        """One optimiser step."""
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1

    def save(self) -> None:
        """Write everything that the next step depends on."""
        tensors = {f"module.{k}": v for k, v in self.module.state_dict().items()}
        if self.ema is not None:
            tensors |= {f"ema.{k}": v for k, v in self.ema.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": v for k, v in state.items()}
        tensors |= {"generator": self.generator.get_state(), "step": torch.tensor(self.step)}
        # Text encoder and its average may share buffers, which safetensors refuses.
        tensors = {k: v.detach().clone().contiguous() for k, v in tensors.items()}
        replace_file(self.path, to_bytes(tensors))

    def _load(self) -> None:
        tensors = load_file(self.path)
        parts: dict[str, dict[str, Tensor]] = {"module": {}, "ema": {}}
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            part, _, name = key.partition(".")
            if part == "optimizer":
                index, _, field = name.partition(".")
                moments.setdefault(int(index), {})[field] = value
            elif part in parts:
                parts[part][name] = value
        self.module.load_state_dict(parts["module"])
        if self.ema is not None:
            self.ema.load_state_dict(parts["ema"])
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.generator.set_state(tensors["generator"])
        self.step = int(tensors["step"])


# ---------------------------------------------------------------------------------------------- data


def make_data(work: Path, views: int, count: int) -> None:
    """Shade maps of the first shapes from random cameras; any colour can be painted on them exactly."""
    maps, shapes, azimuths, elevations = [], [], [], []
    for shape, batches in islice(groupby(training_views(views), key=lambda batch: batch[0]), count):
        for _, cameras in batches:
            maps.append(shade_maps(shape, cameras).mul(255).round().byte())
            azimuths.append(cameras.azimuth)
            elevations.append(cameras.elevation)
            shapes += [list(SHAPES).index(shape)] * len(cameras)
        log(work, stage="data", shape=shape)
    tensors = {
        "maps": torch.cat(maps),
        "shape": torch.tensor(shapes),
        "azimuth": torch.cat(azimuths),
        "elevation": torch.cat(elevations),
    }
    tensors = {k: v.contiguous() for k, v in tensors.items()}
    replace_file(work / "data.safetensors", to_bytes(tensors))


# --------------------------------------------------------------------------------------- autoencoder


def new_autoencoder() -> AutoencoderKL:
    """64x64 rgb to 16x16 latents, convolutions only."""
    channels = (16, 32, 64)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=SIZE,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )


def autoencoder_batch(data: dict[str, Tensor], size: int, g: torch.Generator) -> Tensor:
    """Recoloured views in [-1, 1]; three eighths of them spoilt as the renders of a young scene are."""
    index = torch.randint(len(data["maps"]), (size,), generator=g)
    palettes = torch.stack([palette(colour) for colour in COLOURS])
    paints = palettes[torch.randint(len(palettes), (size,), generator=g)]
    paints = (paints + 0.08 * torch.randn(paints.shape, generator=g)).clamp(0, 1)
    x = colourise(data["maps"][index].float() / 255, paints)
    dy, dx = torch.randint(-8, 9, (2,), generator=g).tolist()
    x = torch.roll(x, (dy, dx), (2, 3))
    part = size // 8
    kernel = int(torch.randint(1, 5, (1,), generator=g)) * 2 + 1
    blurred = F.avg_pool2d(F.pad(x[:part], (kernel // 2,) * 4, mode="replicate"), kernel, 1)
    share = torch.rand(part, 1, 1, 1, generator=g)
    blended = share * x[part : 2 * part] + (1 - share) * x[-part:]
    haze = 0.6 * F.interpolate(torch.rand(part, 1, 4, 4, generator=g), SIZE, mode="bilinear")
    hazy = x[2 * part : 3 * part] * (1 - haze) + torch.rand(part, 3, 1, 1, generator=g) * haze
    return torch.cat([blurred, blended, hazy, x[3 * part :]]) * 2 - 1


def gradients(x: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of neighbouring pixels, across and down."""
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


@torch.no_grad()
def standardise_latents(vae: AutoencoderKL, latents: Tensor) -> None:
    """Fold a shift and scale of each latent channel into the 1x1 convolutions around the latents.

    Every channel then has mean 0 and deviation 1 over the data, with `scaling_factor` 1: the noise schedule
    meets all channels alike.
    """
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    quant, post = vae.quant_conv, vae.post_quant_conv
    assert quant is not None and post is not None
    c = len(mean)
    quant.weight[:c] /= std[:, None, None, None]
    quant.bias[:c] = (quant.bias[:c] - mean) / std
    quant.bias[c:] -= 2 * std.log()
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight *= std[None, :, None, None]


def train_autoencoder(work: Path, steps: int) -> None:
    """L1 + squared error + error of the pixel gradients + a light KL; stops at `steps`."""
    data = load_file(work / "data.safetensors")
    torch.manual_seed(0)
    vae = new_autoencoder()
    trainer = Trainer(work / "autoencoder.safetensors", vae, None, weight_decay=1e-4)
    started, first = time.time(), trainer.step
    while trainer.step < steps:
        step = trainer.step
        x = autoencoder_batch(data, 8, trainer.generator)
        with autocast("auto", "cpu"):
            posterior = vae.encode(x).latent_dist
            z = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=trainer.generator)
            y = vae.decode(z).sample
        y = y.float()
        edges = sum((a - b).abs().mean() for a, b in zip(gradients(x), gradients(y), strict=True))
        mse = F.mse_loss(y, x)
        kl = posterior.kl().mean() / z[0].numel()
        lr = 1.5e-3 * min(1, (step + 1) / 50) * max(0.01, 0.5 + 0.5 * math.cos(math.pi * step / steps))
        trainer.update((y - x).abs().mean() + 4 * mse + 0.5 * edges + 3e-4 * kl, lr)
        if trainer.step % 100 == 0:
            speed = (time.time() - started) / (trainer.step - first)
            log(work, stage="autoencoder", step=trainer.step, mse=mse.item(), kl=kl.item(), seconds=speed)
        if trainer.step % 500 == 0 or trainer.step == steps:
            trainer.save()
    vae.eval()
    check = torch.Generator().manual_seed(1)
    with torch.no_grad():
        x = clean_views(data, min(320, len(data["maps"])), check)
        latents = torch.cat([vae.encode(part).latent_dist.mean for part in x.split(32)])
        standardise_latents(vae, latents)
        y = torch.cat([vae.decode(vae.encode(part).latent_dist.mode()).sample for part in x.split(32)])
    psnr = (-10 * ((y - x) / 2).square().mean((1, 2, 3)).log10()).mean().item()
    log(work, stage="autoencoder", psnr=psnr, latent_std=latents.std((0, 2, 3)).tolist())
    write_png(sheet(torch.cat([x[:20], y[:20]]) * 0.5 + 0.5, 20), work / "autoencoder.png")
    vae.save_pretrained(work / "vae")


def clean_views(data: dict[str, Tensor], count: int, g: torch.Generator) -> Tensor:
    """`count` views in the world's own colours, in [-1, 1]."""
    index = torch.randint(len(data["maps"]), (count,), generator=g)
    palettes = torch.stack([palette(colour) for colour in COLOURS])
    paints = palettes[torch.randint(len(palettes), (count,), generator=g)]
    return colourise(data["maps"][index].float() / 255, paints) * 2 - 1


# ------------------------------------------------------------------------------ tokenizer and U-Net


def make_tokenizer() -> CLIPTokenizer:
    """A byte-pair vocabulary in which every word of the captions is one token, and letters spell the rest."""
    words = {w for thing in SHAPES for w in Thing(thing, "red").caption.split()} | set(COLOURS) | {"an", "the"}
    words |= {w for view in VIEWS for w in view.split()} | {","}
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    special = ["<|startoftext|>", "<|endoftext|>"]
    bpe = Tokenizer(models.BPE(unk_token=special[1], end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        end_of_word_suffix="</w>",
        special_tokens=special,
        initial_alphabet=letters,
        show_progress=False,
    )
    bpe.train_from_iterator([" ".join(sorted(words))] * 3 + [" ".join(letters)], trainer)
    model = json.loads(bpe.to_str())["model"]
    vocabulary: dict[str, int] = model["vocab"]
    for token in [*letters, *(letter + "</w>" for letter in letters), ".</w>"]:
        vocabulary.setdefault(token, len(vocabulary))
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=merges,
        model_max_length=TEXT_LENGTH,
        bos_token=special[0],
        eos_token=special[1],
        unk_token=special[1],
        pad_token=special[1],
    )


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Two small transformer layers."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TEXT_LENGTH,
            projection_dim=64,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def new_unet() -> UNet2DConditionModel:
    """Two resolutions, attention to the text at the lower one, the camera beside the timestep."""
    return UNet2DConditionModel(
        sample_size=SIZE // 4,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(48, 96),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=64,
        attention_head_dim=4,
        norm_num_groups=8,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=4,
    )


def new_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule, velocity prediction."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


@torch.no_grad()
def encode_everything(work: Path, vae: AutoencoderKL, colours: int) -> Tensor:
    """(views, colours, C, 16, 16) latents of every view in the first colours; cached in the work folder."""
    path = work / "latents.safetensors"
    if not path.exists():
        maps = load_file(work / "data.safetensors")["maps"]
        latents = []
        for colour in list(COLOURS)[:colours]:
            paints = palette(colour)
            with autocast("auto", "cpu"):
                parts = [vae.encode(colourise(m.float() / 255, paints) * 2 - 1) for m in maps.split(64)]
            latents.append(torch.cat([part.latent_dist.mode() for part in parts]).half())
            log(work, stage="latents", colour=colour)
        replace_file(path, to_bytes({"latents": torch.stack(latents, 1).contiguous()}))
    return load_file(path)["latents"]


class Captions:
    """Token ids of the captions of every (shape, colour, view)."""

    def __init__(self, tokenizer: CLIPTokenizer):
        def ids(texts: list[str]) -> Tensor:
            kwargs: dict[str, Any] = {
                "padding": "max_length",
                "max_length": TEXT_LENGTH,
                "return_tensors": "pt",
            }
            return tokenizer(texts, **kwargs).input_ids

        endings = [*(f", {view}" for view in VIEWS), ""]
        named = [Thing(s, c).caption + e for s in SHAPES for c in COLOURS for e in endings]
        bare = [f"a {s}{e}" for s in SHAPES for e in endings]
        self.named = ids(named).view(len(SHAPES), len(COLOURS), len(endings), TEXT_LENGTH)
        self.bare = ids(bare).view(len(SHAPES), len(endings), TEXT_LENGTH)
        self.natural = torch.tensor([list(COLOURS).index(s.colour) for s in SHAPES.values()])
        self.empty = ids([""])[0]

    def draw(self, shape: Tensor, colour: Tensor, view: Tensor, g: torch.Generator) -> Tensor:
        """(B, length) ids: 30 % without view words; of the natural colour, 40 % without the colour."""
        view = torch.where(torch.rand(len(shape), generator=g) < 0.3, len(VIEWS), view)
        bare = (colour == self.natural[shape]) & (torch.rand(len(shape), generator=g) < 0.4)
        return torch.where(bare[:, None], self.bare[shape, view], self.named[shape, colour, view])


def train_unet(work: Path, steps: int, sample_steps: int, colours: int) -> None:
    """Velocity matching; text and camera are dropped at times, so that guidance can do without either."""
    data = load_file(work / "data.safetensors")
    vae = AutoencoderKL.from_pretrained(work / "vae").eval()
    latents = encode_everything(work, vae, colours)
    camera = camera_vector(data["azimuth"], data["elevation"])
    view = ViewPrompts().index(data["azimuth"], data["elevation"])
    if not (work / "tokenizer").exists():  # two makings of it may number their tokens differently
        make_tokenizer().save_pretrained(work / "tokenizer.tmp")
        os.replace(work / "tokenizer.tmp", work / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    captions = Captions(tokenizer)
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"text_encoder": new_text_encoder(tokenizer), "unet": new_unet()})
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.998))
    trainer = Trainer(work / "unet.safetensors", model, ema, weight_decay=1e-3)
    g, batch, total = trainer.generator, 32, 0.0
    alphas = new_scheduler().alphas_cumprod
    started, first = time.time(), trainer.step
    while trainer.step < steps:
        step = trainer.step
        index = torch.randint(len(latents), (batch,), generator=g)
        colour = torch.randint(latents.shape[1], (batch,), generator=g)
        z, ids = latents[index, colour].float(), captions.draw(data["shape"][index], colour, view[index], g)
        drop, condition = torch.rand(batch, generator=g), camera[index].clone()
        ids[drop < 0.1] = captions.empty  # text alone: 4 %, both: 6 %
        condition[(drop < 0.06) | (drop > 0.9)] = 0  # camera alone: 10 %
        t = torch.randint(len(alphas), (batch,), generator=g)
        noise = torch.randn(z.shape, generator=g)
        alpha, sigma = alphas[t].sqrt()[:, None, None, None], (1 - alphas[t]).sqrt()[:, None, None, None]
        with autocast("auto", "cpu"):
            text = model["text_encoder"](ids)[0]
            velocity = model["unet"](alpha * z + sigma * noise, t, text, class_labels=condition).sample
        loss = F.mse_loss(velocity.float(), alpha * noise - sigma * z)
        trainer.update(loss, 1.2e-3 * min(1, (step + 1) / 100, max(0.02, (1 - step / steps) / 0.5)))
        ema.update_parameters(model)
        total += loss.item()
        if trainer.step % 100 == 0:
            speed = (time.time() - started) / (trainer.step - first)
            log(work, stage="unet", step=trainer.step, loss=total / 100, seconds=speed)
            total = 0.0
        if trainer.step % 500 == 0 or trainer.step == steps:
            trainer.save()
            save_pipeline(work, ema.module, vae, tokenizer)
            save_samples(work, sample_steps, int(data["shape"].max()) + 1)


# ------------------------------------------------------------------------------------------ pipeline


def save_pipeline(work: Path, model: torch.nn.Module, vae: AutoencoderKL, tokenizer: CLIPTokenizer) -> None:
    """The whole teacher as a diffusers folder in half precision."""
    temporary = work / "pipeline.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=model.text_encoder,
        tokenizer=tokenizer,
        unet=model.unet,
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(temporary)
    for weights in temporary.rglob("*.safetensors"):
        half = {k: v.half() if v.is_floating_point() else v for k, v in load_file(weights).items()}
        save_file(half, weights, metadata={"format": "pt"})
    for config in temporary.rglob("config.json"):  # where a part was loaded from is nobody's business
        content = json.loads(config.read_text())
        content.pop("_name_or_path", None)
        config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    shutil.rmtree(work / "pipeline", ignore_errors=True)
    os.replace(temporary, work / "pipeline")


def save_samples(work: Path, steps: int, count: int) -> None:
    """A grid of what the teacher makes of the captions of the first shapes: four sides and a view from above."""
    teacher = DiffusersTeacher(DiffusersTeacherConfig(path=str(work / "pipeline")))
    cameras = Cameras.look_at_origin(torch.tensor([20.0, 110, 200, 290, 30]), torch.tensor([15.0, 15, 15, 15, 60]))
    rng, rows = torch.Generator().manual_seed(0), []
    for index, shape in enumerate(islice(SHAPES, count)):
        condition = teacher.condition(Thing(shape, list(COLOURS)[index % len(COLOURS)]).caption, cameras)
        size = (len(cameras), LATENT_CHANNELS, SIZE // 4, SIZE // 4)
        rows.append(teacher.decode(ddim_sample(teacher, condition, size, rng, steps=steps)))
    write_png(sheet(torch.cat(rows), 2 * len(cameras)), work / "samples.png")


def main(words: Sequence[str] | None = None) -> None:
    """Run the stages in order, with the options of the command line or of a caller."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("outputs/builtin_teacher"), help="work folder")
    parser.add_argument("--views", type=int, default=400, help="pictures of each object, a multiple of 20")
    parser.add_argument("--shapes", type=int, default=len(SHAPES), help="train on the first N, for a try")
    parser.add_argument("--colours", type=int, default=len(COLOURS), help="train on the first N, for a try")
    parser.add_argument("--autoencoder-steps", type=int, default=7500)
    parser.add_argument("--unet-steps", type=int, default=14500)
    parser.add_argument("--sample-steps", type=int, default=15, help="DDIM steps of the pictures at the end")
    parser.add_argument("--stop-after", choices=STAGES, default=STAGES[-1])
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--install", action="store_true", help="copy the pipeline into the package at the end")
    options = parser.parse_args(words)
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    last = STAGES.index(options.stop_after)
    if not (work / "data.safetensors").exists():
        make_data(work, options.views, options.shapes)
    if last >= 1 and not (work / "vae").exists():
        train_autoencoder(work, options.autoencoder_steps)
    if last >= 2:
        train_unet(work, options.unet_steps, options.sample_steps, options.colours)
    if options.install:
        for folder in (work / "pipeline").iterdir():
            if folder.is_dir():
                shutil.copytree(folder, BUILTIN / folder.name, dirs_exist_ok=True, copy_function=shutil.copyfile)
        shutil.copyfile(work / "pipeline" / "model_index.json", BUILTIN / "model_index.json")


if __name__ == "__main__":
    main()
