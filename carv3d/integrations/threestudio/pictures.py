"""The test pictures of a threestudio run, and its prompt. Imports nothing of threestudio."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from torch import Tensor

from carv3d.errors import UserError
from carv3d.images import read_png


@dataclass(frozen=True)
class TestPictures:
    """Views of an object.

    Attributes:
        folder: of the pictures. prompt: of the run; empty if unknown.
        rgb: (N, 3, H, H) in [0, 1].
    """

    folder: Path
    prompt: str
    rgb: Tensor


def is_threestudio_run(path: Path) -> bool:
    """Whether a folder is a trial of threestudio, its `save` or a folder of test pictures in it."""
    return not (path / "config.yaml").exists() and _of_pictures(path) is not None


def read(path: Path) -> TestPictures:
    """The newest test pictures of a trial, of its `save/`, or those in a folder `itN-test/`.

    A picture has the colours in its left square, and normals and opacity beside it.

    Raises:
        UserError: none there, or one that cannot be read.
    """
    folder = _of_pictures(path)
    if folder is None:
        raise UserError(f"{path} has no itN-test folder with pictures: give a threestudio trial, or its save folder")
    files = sorted(folder.glob("*.png"), key=lambda file: (len(file.stem), file.stem))
    rgb = []
    for file in files:
        picture = read_png(file)
        height, width = picture.shape[1:]
        if width % height:
            raise UserError(f"{file} is {width} x {height} pixels: threestudio's test pictures are squares in a row")
        rgb.append(picture[:, :, :height])
    if len({tuple(picture.shape) for picture in rgb}) > 1:
        raise UserError(f"the pictures in {folder} are of different sizes")
    return TestPictures(folder, _prompt(folder), torch.stack(rgb))


def _of_pictures(path: Path) -> Path | None:
    folders = [path, *path.glob("it*-test"), *path.glob("save/it*-test")]
    found = [f for f in folders if re.fullmatch(r"it\d+-test", f.name) and any(f.glob("*.png"))]
    return max(found, key=lambda folder: int(re.sub(r"\D", "", folder.name)), default=None)


def _prompt(folder: Path) -> str:
    for parent in folder.parents:
        parsed = parent / "configs" / "parsed.yaml"
        if parsed.is_file():
            try:
                values = yaml.safe_load(parsed.read_text(encoding="utf-8"))
                return str(values["system"]["prompt_processor"]["prompt"])
            except (yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError):
                return ""
    return ""
