"""A diffusers pipeline that you have loaded, in your own loop: no config, no scene and no camera of carv3d.

    python docs/examples/bare_pipeline.py FOLDER_OR_HUB_ID "a wooden chair" --steps 500

Whatever was done to the pipeline (LoRA weights, merged tokens, quantised layers, compiled networks) is in the gradient.
The small pipeline that comes with carv3d stands in if no other is given.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

import carv3d
from carv3d.teachers.weights import BUILTIN


def main() -> None:
    """Train an image, as a stand-in for any differentiable renderer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", nargs="?", default=str(BUILTIN))
    parser.add_argument("prompt", nargs="?", default="a blue cube")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--output", type=Path, default=Path("bare_pipeline.png"))
    options = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipe = StableDiffusionPipeline.from_pretrained(options.pipeline, safety_checker=None).to(device)
    # pipe.load_lora_weights(...), tomesd.apply_patch(pipe), ... : before or after the next line.
    teacher = carv3d.from_pipeline(pipe)
    carv = carv3d.Carv(teacher, guidance=7.5, resamples=8, t_range=(20, 980))

    image = torch.full((1, 3, teacher.image_size, teacher.image_size), 0.5, device=device, requires_grad=True)
    optimizer = torch.optim.Adam([image], lr=0.02)
    condition = teacher.text_condition(options.prompt)  # of a text alone; azimuth= and elevation= tell the view
    for step in range(options.steps):
        optimizer.zero_grad()
        loss, estimate = carv(teacher.encode(image.clamp(0, 1)), condition, step=step)
        loss.backward()
        optimizer.step()
        if step % 10 == 0:
            print(f"step {step}: loss {float(loss):.4g}, timesteps {estimate.draws.t[0].tolist()}")
    pixels = (image.detach().clamp(0, 1)[0].permute(1, 2, 0).cpu() * 255).byte().numpy()
    Image.fromarray(pixels).resize((256, 256)).save(options.output)


if __name__ == "__main__":
    main()
