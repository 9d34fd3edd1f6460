"""Whether a teacher's own samples of the built-in world show the object of the prompt.

For every class in three colours, seen by four known cameras, a picture is sampled and compared with the true
pictures of all classes in all colours from the same camera, by squared error. Retrieval is the share whose nearest
picture is the object of the prompt. A word without `=` is the pipeline's folder (default builtin). OUT/teacher.png
shows all samples.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from carv3d.cameras import Cameras
from carv3d.images import sheet, write_png
from carv3d.shapes import ALL_THINGS, Gallery, assorted
from carv3d.teachers import DiffusersTeacher
from carv3d.teachers.config import DiffusersTeacherConfig
from carv3d.teachers.ddim import ddim_sample
from scripts.benchmarks.harness import Bench, Table

AZIMUTHS, ELEVATIONS = [20.0, 110.0, -160.0, -70.0], [15.0, 30.0, 15.0, 30.0]
SCALE, STEPS = 3.0, 30  # of guidance, of DDIM


def measure(bench: Bench) -> Iterator[tuple[str, Table]]:
    """One row."""
    path = next((word for word in bench.words if "=" not in word), "builtin")
    teacher = DiffusersTeacher(DiffusersTeacherConfig(path=path), device=bench.device)
    cameras = Cameras.look_at_origin(torch.tensor(AZIMUTHS), torch.tensor(ELEVATIONS))
    gallery, things, rng = Gallery(cameras), assorted()[:: 24 if bench.quick else 1], bench.rng()
    right, mse, pictures = 0, 0.0, []
    for thing in things:
        condition, shape = teacher.condition(thing.caption, cameras), (len(cameras), *teacher.latent_shape)
        z = ddim_sample(teacher, condition, shape, rng, scale=SCALE, steps=4 if bench.quick else STEPS)
        pictures.append(teacher.decode(z).cpu())
        errors = gallery.errors(pictures[-1])
        right += sum(ALL_THINGS[i] == thing for i in errors.argmin(0).tolist())
        mse += errors[ALL_THINGS.index(thing)].mean().item() / len(things)
    bench.out.mkdir(parents=True, exist_ok=True)
    write_png(sheet(torch.cat(pictures), 12), bench.out / "teacher.png")
    y = torch.cat([gallery.truth(thing) for thing in ALL_THINGS[::7]])
    decoded = teacher.decode(teacher.encode(y.to(bench.device))).cpu()
    psnr = -10 * torch.tensor(mse).log10().item()
    own = (-10 * (y - decoded).square().mean((1, 2, 3)).log10()).mean().item()
    total = len(things) * len(cameras)
    table = Table(["teacher", "retrieval", "samples", "PSNR of samples, dB", "PSNR of the autoencoder, dB"])
    table.rows.append([path, f"{right / total:.1%}", total, f"{psnr:.1f}", f"{own:.1f}"])
    yield "teacher", table
