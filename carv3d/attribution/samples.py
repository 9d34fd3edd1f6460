"""Queries that the teacher samples: pictures of prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from carv3d.attribution.pictures import InMemory, unknown_camera
from carv3d.cameras import CameraSampler
from carv3d.cameras.config import CameraConfig
from carv3d.errors import UserError
from carv3d.prompts.views import VIEWS, ViewPrompts
from carv3d.shapes import parse
from carv3d.teachers import DiffusersTeacher
from carv3d.teachers.camera_conditioning import camera_vector
from carv3d.teachers.ddim import ddim_sample


def sample_pictures(
    teacher: DiffusersTeacher, prompts: Sequence[str], *, count: int, scale: float, steps: int, seed: int
) -> InMemory:
    """`count` pictures a prompt by DDIM. A picture does not depend on the other pictures of the call.

    A teacher that takes a camera gets a random one, and its view words.

    Args:
        teacher: the model.
        prompts: what to show.
        count: pictures a prompt.
        scale: classifier-free guidance.
        steps: of DDIM.
        seed: of the noise, together with the prompt and the picture's number.
    """
    names, captions, cameras, images = [], [], [], []
    for prompt in prompts:
        for number in range(count):
            own = int(hashlib.sha256(f"{seed}\0{prompt}\0{number}".encode()).hexdigest()[:15], 16)
            rng = torch.Generator().manual_seed(own)
            caption, camera = prompt, unknown_camera(1)
            if teacher.takes_camera:
                view = CameraSampler(CameraConfig()).sample(1, rng)
                camera = camera_vector(view.azimuth, view.elevation)
                if teacher.view_words:
                    caption += f", {VIEWS[int(ViewPrompts().index(view.azimuth, view.elevation))]}"
            condition = teacher.caption_condition([caption], camera)
            noise = torch.Generator(teacher.device).manual_seed(own)
            z = ddim_sample(teacher, condition, (1, *teacher.latent_shape), noise, scale=scale, steps=steps)
            names.append(prompt if count == 1 else f"{prompt} #{number + 1}")
            captions.append(caption)
            cameras.append(camera)
            images.append(teacher.decode(z).cpu())
    return InMemory(
        "sampled by the teacher",
        names,
        captions,
        torch.cat(cameras),
        torch.cat(images),
        _classes(teacher, prompts, count),
    )


def _classes(teacher: DiffusersTeacher, prompts: Sequence[str], count: int) -> list[str]:
    """The objects' shapes, if all prompts are of the built-in world."""
    if not teacher.builtin:
        return []
    try:
        return [parse(prompt).shape for prompt in prompts for _ in range(count)]
    except UserError:
        return []
