"""Distil a prompt into a single image: plain SDS against CARV, for the same time. Under a minute on two CPU cores.

    python docs/examples/playground.py "a red chair" --seconds 20

Writes playground.png: a row a method, from the start to the end of its time. There is no scene and no camera here, only
an image whose pixels are trained, so that the whole of score distillation fits on a page.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import matplotlib
import torch

from carv3d import Carv
from carv3d.teachers import DiffusersTeacher

matplotlib.use("Agg")
from matplotlib import pyplot as plt

SHOWN = 6  # pictures a row


def distil(carv: Carv, prompt: str, seconds: float) -> tuple[list[torch.Tensor], int]:
    """Train an image for so many seconds: pictures on the way, and the number of steps."""
    teacher = carv.model
    assert isinstance(teacher, DiffusersTeacher)
    # The built-in teacher knows objects from all sides: it is asked for the front, a little from above.
    condition = teacher.text_condition(prompt, azimuth=torch.tensor([30.0]), elevation=torch.tensor([20.0]))
    size = teacher.image_size
    logits = torch.zeros(1, 3, size, size, requires_grad=True)  # a grey image
    optimizer = torch.optim.Adam([logits], lr=0.1)
    pictures, steps, started = [logits.sigmoid().detach()[0]], 0, time.perf_counter()
    while (spent := time.perf_counter() - started) < seconds:
        optimizer.zero_grad()
        latents = teacher.encode(logits.sigmoid())  # once a step
        loss, _ = carv(latents, condition)  # K draws of timestep and noise, averaged
        loss.backward()  # once a step
        optimizer.step()
        steps += 1
        if spent >= len(pictures) * seconds / (SHOWN - 1):
            pictures.append(logits.sigmoid().detach()[0])
    return [*pictures[: SHOWN - 1], logits.sigmoid().detach()[0]], steps


def main() -> None:
    """Compare the two methods and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt", nargs="?", default="a red chair")
    parser.add_argument("--seconds", type=float, default=20.0, help="a method")
    parser.add_argument("--output", type=Path, default=Path("playground.png"))
    options = parser.parse_args()
    teacher = DiffusersTeacher()  # the small one that comes with carv3d
    methods = {
        "SDS, K = 1": Carv(teacher, guidance=10.0, resamples=1, proposal="uniform"),
        "CARV, K = 8": Carv(teacher, guidance=10.0, resamples=8),
    }
    figure, axes = plt.subplots(len(methods), SHOWN, figsize=(2 * SHOWN, 2.3 * len(methods)), squeeze=False)
    for row, (name, carv) in zip(axes, methods.items(), strict=True):
        pictures, steps = distil(carv, options.prompt, options.seconds)
        print(f"{name}: {steps} steps in {options.seconds:g} s")
        for axis in row:
            axis.axis("off")
        for axis, picture in zip(row, pictures, strict=False):
            axis.imshow(picture.permute(1, 2, 0).numpy())
        row[0].set_title(f"{name}, {steps} steps", loc="left", fontsize=10)
    figure.suptitle(options.prompt)
    figure.tight_layout()
    figure.savefig(options.output, dpi=80)


if __name__ == "__main__":
    main()
