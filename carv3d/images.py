"""Pictures and video on disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import torch
from imageio.v2 import get_writer
from numpy.typing import NDArray
from torch import Tensor

from carv3d.errors import UserError
from carv3d.runs import replace_file, temporary_folder

Bytes = NDArray[np.uint8]


def to_bytes(images: Tensor) -> Bytes:
    """(N, 3, H, W) in [0, 1] to (N, H, W, 3) uint8."""
    return images.detach().clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def sheet(images: Tensor, columns: int, gap: int = 2) -> Tensor:
    """(N, 3, H, W) images side by side, `columns` a row, white between: (3, H', W')."""
    _, channels, height, width = images.shape
    rows = -(-len(images) // columns)
    page = images.new_ones(channels, rows * (height + gap) - gap, columns * (width + gap) - gap)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        top, left = row * (height + gap), column * (width + gap)
        page[:, top : top + height, left : left + width] = image
    return page


def encode_png(image: Tensor) -> bytes:
    """(3, H, W) in [0, 1] as the bytes of a PNG file."""
    return iio.imwrite("<bytes>", to_bytes(image[None])[0], extension=".png")


def write_png(image: Tensor, path: Path) -> None:
    """Write (3, H, W) in [0, 1] as a PNG file.

    Raises:
        UserError: the disk is full, or may not be written to.
    """
    replace_file(path, encode_png(image))


def read_png(path: Path) -> Tensor:
    """Read (3, H, W) in [0, 1] from a file with 8 bits a colour; transparent parts become white.

    Raises:
        UserError: no such picture, or one of another kind.
    """
    try:
        pixels = iio.imread(path, extension=".png")
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a picture ({' '.join(str(error).split())[:100]})") from None
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (3, 4):
        raise UserError(f"{path} is no colour picture of 8 bits: {pixels.dtype} of shape {pixels.shape}")
    image = torch.from_numpy(pixels).float().div(255).permute(2, 0, 1)
    return image if len(image) == 3 else image[:3] * image[3:] + 1 - image[3:]


VIDEOS: dict[str, dict[str, Any]] = {
    ".mp4": {"format": "FFMPEG", "codec": "libx264", "quality": 8, "macro_block_size": 2},  # H.264
    ".webm": {  # VP9
        "format": "FFMPEG",
        "codec": "libvpx-vp9",
        "quality": None,
        "macro_block_size": 2,
        "output_params": ["-crf", "24", "-b:v", "0"],
    },
    ".gif": {"plugin": "pillow", "loop": 0},  # forever
}
"""The formats of a video by the ending of its name, and the arguments that imageio takes for each."""


def refuse_other_videos(path: Path) -> None:
    """See that the ending of a path is a video format's.

    Raises:
        UserError: it is not.
    """
    if path.suffix.lower() not in VIDEOS:
        raise UserError(f"{path} is no video that can be written: give a name that ends in {', '.join(VIDEOS)}")


def write_video(frames: Iterable[Tensor], path: Path, fps: int) -> None:
    """Write pictures (3, H, W) in [0, 1] as a video of the format that the path's ending says, see `VIDEOS`.

    They are taken one by one, so that a long video (but for .gif) needs no more memory than a short one. Video codecs
    need even numbers of rows and columns: the last one is doubled where the number is odd.

    Raises:
        UserError: another ending; the disk is full, or may not be written to.
    """
    refuse_other_videos(path)
    options = VIDEOS[path.suffix.lower()]
    # The encoder is a separate program, which ends with a broken pipe on a full disk. So it writes to the system's
    # temporary folder, and the result is copied.
    with temporary_folder("video") as folder:
        finished = folder / f"video{path.suffix.lower()}"
        try:
            pictures = (to_bytes(frame[None])[0] for frame in _tagged(frames))
            if "format" in options:
                writer: Any = get_writer(finished, mode="I", fps=fps, **options)
                with writer:
                    for picture in pictures:
                        writer.append_data(_even(picture))
            else:
                iio.imwrite(finished, np.stack(list(pictures)), duration=1000 / fps, **options)  # milliseconds a frame
        except _FrameError as failed:
            raise failed.args[0] from None
        except (OSError, RuntimeError, ImportError, ValueError) as error:  # imageio has no common type
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"the video encoder failed ({reason}): install imageio-ffmpeg, and see that there is room in {folder}"
            ) from error
        replace_file(path, finished.read_bytes())


class _FrameError(Exception):
    """An error in making a frame, which is not the encoder's."""


def _tagged(frames: Iterable[Tensor]) -> Iterator[Tensor]:
    try:
        yield from frames
    except Exception as error:
        raise _FrameError(error) from error


def _even(picture: Bytes) -> Bytes:
    """(H, W, 3) with an even number of rows and columns."""
    height, width, _ = picture.shape
    return np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
