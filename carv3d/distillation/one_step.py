"""The distilled generator as a folder of files, and pictures from it with one network call.

The folder is a diffusers `StableDiffusionPipeline` with the generator as its U-Net, and `one_step.json` beside
`model_index.json`, which holds its timestep and conditions.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from carv3d.cameras import Cameras
from carv3d.config.paths import user_path
from carv3d.distillation.conditions import Conditions
from carv3d.distillation.trainer import Distiller
from carv3d.errors import UserError
from carv3d.prompts.views import ViewPrompts
from carv3d.runs import disk_errors, replace_file
from carv3d.shapes import parse
from carv3d.teachers import DiffusersTeacher
from carv3d.teachers.config import DiffusersTeacherConfig

CARD = "one_step.json"
_PARTS = ("vae", "text_encoder", "tokenizer", "scheduler")


@dataclass(frozen=True)
class Card:
    """The content of `one_step.json`.

    Attributes:
        timestep: of the call. camera: whether the network takes the camera.
        view_words: whether view words are appended to prompts.
        front, back, overhead: degrees, see `carv3d.prompts.views.ViewPrompts`.
        builtin: whether it knows only words of the built-in world.
        negative: the negative prompt of its training, which guidance has made part of it.
        one_step: always true; for programs that look for it.
    """

    timestep: int
    camera: bool
    view_words: bool
    front: float
    back: float
    overhead: float
    builtin: bool
    negative: str
    one_step: bool = True


def write_pipeline(distiller: Distiller, folder: Path) -> None:
    """Write the averaged generator with the teacher's other parts, into a folder that is complete or absent.

    Raises:
        UserError: the disk is full, or may not be written to.
    """
    teacher, config = distiller.teacher, distiller.config
    if teacher.weights is None:
        raise UserError("a pipeline that was in memory has no files to copy: save it, and give teacher.path")
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    card = Card(
        timestep=distiller.timestep,
        camera=teacher.takes_camera,
        view_words=teacher.view_words,
        front=config.views.front,
        back=config.views.back,
        overhead=config.views.overhead,
        builtin=teacher.builtin and not teacher.force,
        negative=config.negative_prompt,
    )
    with disk_errors(folder):
        try:
            part.mkdir(parents=True)
            for name in _PARTS:
                shutil.copytree(teacher.weights.folder / name, part / name)
            with distiller.averaged():
                distiller.generator.network.save_pretrained(part / "unet", safe_serialization=True)  # type: ignore[operator]
            shutil.copy(teacher.weights.folder / "model_index.json", part)
            replace_file(part / CARD, (json.dumps(asdict(card), indent=1) + "\n").encode())
            shutil.rmtree(folder, ignore_errors=True)
            part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)


class OneStep:
    """A distilled generator from its folder.

    Attributes:
        card: its timestep and conditions.
        teacher: its text encoder, decoder and network, as a teacher.
    """

    def __init__(self, path: Path | str, device: torch.device | str = "cpu") -> None:
        """Load it.

        Args:
            path: a run of `carv3d distill`, or a pipeline folder that one wrote.
            device: of the networks.

        Raises:
            UserError: no such folder, a run that is not finished, files that cannot be read.
        """
        folder = find_pipeline(user_path(path))
        self.card = _read_card(folder / CARD)
        self.teacher = DiffusersTeacher(
            DiffusersTeacherConfig(
                path=str(folder), camera="vector" if self.card.camera else "none", view_words=self.card.view_words
            ),
            views=ViewPrompts(self.card.front, self.card.back, self.card.overhead),
            device=device,
        )
        self._network = self.teacher.trainable(rank=0, seed=0)

    @torch.no_grad()
    def latents(self, prompts: Sequence[str], cameras: Cameras, rng: torch.Generator) -> Tensor:
        """(N, C, h, w) of N prompts and cameras: one call of the network; the noise comes from `rng`.

        Raises:
            UserError: a prompt with words that a generator of the built-in world does not know.
        """
        if self.card.builtin:
            for prompt in prompts:
                parse(prompt)
        known = list(dict.fromkeys(prompts))
        condition = Conditions(self.teacher, known, self.card.negative)(
            torch.tensor([known.index(prompt) for prompt in prompts]), cameras.to(self.teacher.device)
        )
        noise = torch.randn((len(prompts), *self.teacher.latent_shape), generator=rng, device=rng.device)
        return self._network.one_step(noise.to(self.teacher.device), self.card.timestep, condition)

    def pictures(self, prompts: Sequence[str], cameras: Cameras, rng: torch.Generator) -> Tensor:
        """(N, 3, H, W) in [0, 1]: `latents`, decoded."""
        return self.teacher.decode(self.latents(prompts, cameras, rng))


def find_pipeline(path: Path) -> Path:
    """The folder with the generator: the path, or `pipeline` in it.

    Raises:
        UserError: there is none.
    """
    for folder in (path, path / "pipeline"):
        if (folder / CARD).is_file():
            return folder
    if (path / "checkpoints").is_dir():
        raise UserError(f"{path} has no pipeline yet: finish it with carv3d distill --resume {path}")
    raise UserError(f"{path} is no distilled generator; give a folder that `carv3d distill` made")


def _read_card(path: Path) -> Card:
    try:
        values: Mapping[str, object] = json.loads(path.read_text(encoding="utf-8"))
        return Card(**values)  # type: ignore[arg-type]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read: distil again ({error})") from None
