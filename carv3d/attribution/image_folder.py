"""Captioned pictures from files, in two common layouts.

A folder with `metadata.jsonl`, a line a picture with `file_name` and `text` (the image folder of Hugging Face's
`datasets`), or the path of such a file; or a folder in which each picture has its caption in a `.txt` file of the
same name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from carv3d.attribution.pictures import Pictures, digest_of, unknown_camera
from carv3d.config.paths import user_path
from carv3d.errors import UserError

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
METADATA = "metadata.jsonl"


class ImageFolder(Pictures):
    """See `Pictures`. Cameras are not known.

    A picture of another size is resized so that its shorter side has the teacher's size, and is cropped to the
    central square, as in the training scripts of diffusers. Transparent parts become white.
    """

    classes: Sequence[str] = ()

    def __init__(self, path: Path | str, size: int, limit: int = 0) -> None:
        """Find the files and their captions; decode every file once to check it.

        Args:
            path: a folder, or a file of lines as in `metadata.jsonl`.
            size: side of the squares in pixels.
            limit: number of pictures, the first ones by name; 0: all.

        Raises:
            UserError: no pictures, one that cannot be read, or one without a caption.
        """
        place = user_path(path)
        listing = place if place.is_file() else place / METADATA
        if not place.exists():
            raise UserError(f"no pictures at {path}: give a folder of them, a {METADATA} file, or builtin")
        if listing.suffix == ".csv" or (not listing.is_file() and (place / "metadata.csv").is_file()):
            raise UserError(
                f"{place} has its captions in a .csv file, which is not read: write {METADATA} with lines as {_EXAMPLE}"
            )
        pairs = dict(_listed(listing) if listing.is_file() else _beside(place))
        if not pairs:
            raise UserError(f"{place} has no pictures ({', '.join(ENDINGS)}): give a folder that has some")
        self._root, self._size = listing.parent, size
        self.names = sorted(pairs)[: limit or None]
        self.captions = [pairs[name] for name in self.names]
        self.camera = unknown_camera(len(self.names))
        self.source = f"{len(self.names):,} pictures of {place}"
        # Damaged files are found at the start.
        self._files = hashlib.sha256()
        for name in self.names:
            try:
                if not (self._root / name).is_file():  # a pipe, which would be waited for
                    raise FileNotFoundError
                with Image.open(self._root / name) as image:
                    mode = image.mode
                    _decoded(image)
                self._files.update((self._root / name).read_bytes())
            except FileNotFoundError:
                raise UserError(f"{listing} names {name}, which is not there: correct the line") from None
            except Exception as error:  # the errors of Pillow differ between formats
                raise UserError(f"{self._root / name} cannot be read as a picture: replace or remove it") from error
            if mode in ("I", "F"):
                raise UserError(
                    f"{self._root / name} has {'whole numbers of 32 bits' if mode == 'I' else 'decimals'} a pixel, so "
                    "that its white is not known: save it with 8 or 16 bits a colour"
                )

    def load(self, rows: Sequence[int]) -> Tensor:
        """See `Pictures`."""
        return torch.stack([self._read(self._root / self.names[row]) for row in rows])

    def digest(self) -> str:
        """See `Pictures`."""
        return digest_of(self, self._files.digest(), str(self._size))

    def _read(self, path: Path) -> Tensor:
        try:
            with Image.open(path) as opened:
                image = _decoded(opened)
        except Exception as error:
            raise UserError(f"{path} cannot be read as a picture: replace or remove it") from error
        white = Image.new("RGBA", image.size, "white")
        square = ImageOps.fit(Image.alpha_composite(white, image), (self._size, self._size), Image.Resampling.LANCZOS)
        return torch.from_numpy(np.array(square.convert("RGB"))).permute(2, 0, 1).float() / 255


def _decoded(opened: Image.Image) -> Image.Image:
    """The upright picture with 8 bits a colour: Pillow cuts off what is above 255 when it converts one of 16 bits."""
    image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image).astype(np.uint32) * 255 // 65535).astype(np.uint8))
    return image.convert("RGBA")


def _listed(listing: Path) -> Iterator[tuple[str, str]]:
    try:
        lines = listing.read_text(encoding="utf-8-sig").split("\n")  # captions may have other line separators
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {listing}: give lines such as " + _EXAMPLE) from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name, text = row["file_name"], row["text"]
            if not isinstance(name, str) or not isinstance(text, str):
                raise TypeError
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{listing}:{number}: no file_name and text: write a line as {_EXAMPLE}") from None
        yield name, text


_EXAMPLE = '{"file_name": "a.png", "text": "a red chair"}'


def _beside(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() not in ENDINGS or hidden or not path.is_file():
            continue
        caption = path.with_suffix(".txt")
        try:
            yield path.relative_to(folder).as_posix(), " ".join(caption.read_text(encoding="utf-8-sig").split())
        except UnicodeDecodeError:
            raise UserError(f"{caption} is not a text in UTF-8: save it as UTF-8") from None
        except OSError:
            raise UserError(
                f"{path} has no caption: write {caption.name} beside it, or {folder / METADATA} with a line {_EXAMPLE} "
                "a picture (an empty text means no caption)"
            ) from None
