"""Measure a teacher of the built-in world: do its own samples show the object that was asked for?

    python scripts/evaluate_builtin_teacher.py [PIPELINE_FOLDER] [--json FILE] [--grid FILE.png]

For every class in three colours, seen by four known cameras, a picture is sampled and compared with the true
pictures of all classes in all colours from the same camera, by squared error. Retrieval is the share whose
nearest is the object asked for.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from carv3d.cameras import Cameras
from carv3d.images import sheet, write_png
from carv3d.shapes import ALL_THINGS, Gallery, assorted
from carv3d.teachers import DiffusersTeacher
from carv3d.teachers.ddim import ddim_sample

AZIMUTHS, ELEVATIONS = [20.0, 110.0, -160.0, -70.0], [15.0, 30.0, 15.0, 30.0]


def main() -> None:
    """Sample, retrieve, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", nargs="?", default="builtin")
    parser.add_argument("--scale", type=float, default=3.0, help="classifier-free guidance")
    parser.add_argument("--steps", type=int, default=30, help="DDIM steps")
    parser.add_argument("--every", type=int, default=1, help="sample every Nth object alone, for a try")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--grid", type=Path, help="write a picture of all samples here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    teacher = DiffusersTeacher(options.teacher)
    cameras = Cameras.look_at_origin(torch.tensor(AZIMUTHS), torch.tensor(ELEVATIONS))
    gallery, things = Gallery(cameras), assorted()[:: options.every]
    rng = torch.Generator().manual_seed(0)
    right, mse, rows, missed = 0, 0.0, [], []
    for thing in things:
        condition = teacher.condition(thing.caption, cameras)
        shape = (len(cameras), *teacher.latent_shape)
        pictures = teacher.decode(ddim_sample(teacher, condition, shape, rng, scale=options.scale, steps=options.steps))
        errors = gallery.errors(pictures)
        nearest = errors.argmin(0)
        found = [ALL_THINGS[i] for i in nearest.tolist()]
        right += sum(f == thing for f in found)
        missed += [f"{thing.caption} -> {f.caption}" for f in found if f != thing]
        mse += errors[ALL_THINGS.index(thing)].mean().item() / len(things)
        rows.append(pictures)
    total = len(things) * len(cameras)
    y = torch.cat([gallery.truth(thing) for thing in ALL_THINGS[::7]])
    reconstructed = teacher.decode(teacher.encode(y))
    figures = {
        "retrieval": right / total,
        "samples": total,
        "sample_psnr": -10 * torch.tensor(mse).log10().item(),
        "autoencoder_psnr": (-10 * (y - reconstructed).square().mean((1, 2, 3)).log10()).mean().item(),
        "guidance": options.scale,
        "missed": missed,
    }
    print(json.dumps(figures, indent=1))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    if options.grid:
        write_png(sheet(torch.cat(rows), 12), options.grid)


if __name__ == "__main__":
    main()
