"""Conditions of a batch of pictures, each with its own prompt and camera."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from carv3d.cameras import Cameras
from carv3d.prompts.files import find_prompts, read_prompts
from carv3d.shapes import ALL_THINGS
from carv3d.teachers import DiffusersTeacher
from carv3d.teachers.text_condition import TextCondition


def prompts_of(source: str) -> list[str]:
    """The prompts of a file, one a line, or of the built-in world.

    Args:
        source: a text file, blank lines and lines that start with # left out; or "builtin".

    Raises:
        UserError: the file cannot be read, or has no prompts.
    """
    if source == "builtin":
        return [thing.caption for thing in ALL_THINGS]
    return read_prompts(find_prompts(source))


class Conditions:
    """Conditions of batches. Every text is encoded once, at the start; the text encoder is not trained."""

    def __init__(self, teacher: DiffusersTeacher, prompts: Sequence[str], negative: str = "") -> None:
        """Encode the prompts.

        Raises:
            UserError: a prompt that the built-in teacher does not know.
        """
        self.teacher, self.prompts, self.negative = teacher, list(prompts), negative
        teacher.prepare(self.prompts, negative)

    def __call__(self, index: Tensor, cameras: Cameras) -> TextCondition:
        """The condition of N pictures.

        Args:
            index: (N,) of the prompts.
            cameras: N.
        """
        parts = [
            self.teacher.condition(self.prompts[i], cameras[n : n + 1], self.negative)
            for n, i in enumerate(index.tolist())
        ]
        mixed = [part.mixed(part.cond) for part in parts] + [parts[0].mixed(parts[0].uncond)]
        embeddings = {name: torch.cat([one[name] for one in mixed]) for name in mixed[0]}
        count, device = len(parts), self.teacher.device
        shares = torch.eye(count + 1, device=device)
        camera = None
        if parts[0].camera is not None:
            camera = torch.cat([part.camera for part in parts if part.camera is not None])
        none = torch.zeros(count, 0, device=device)
        return TextCondition(
            embeddings,
            shares[-1:].expand(count, -1),
            shares[:-1],
            none[..., None].expand(-1, -1, count + 1),
            none,
            camera,
        )
