"""Scores against the true objects, and the files that pictures go to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch

from carv3d.errors import UserError
from carv3d.evaluation.evaluation import Judge, silhouette_iou
from carv3d.images import sheet, write_png, write_video
from carv3d.shapes import ALL_THINGS, Thing


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge(32)


def test_the_truth_scores_perfectly_and_finds_itself(judge: Judge) -> None:
    """Every thing retrieves itself among all: no two look alike from all twelve cameras."""
    for thing in ALL_THINGS[::9]:
        score = judge.score(thing, *judge.truth(thing))
        assert score.retrieval_rank == 1 and score.iou == 1 and score.psnr > 60


def test_another_object_ranks_lower(judge: Judge) -> None:
    """A red cone is not taken for a blue cone, nor for a red chair."""
    pictures = judge.truth(Thing("cone", "red"))
    assert judge.score(Thing("cone", "blue"), *pictures).retrieval_rank > 1
    wrong = judge.score(Thing("chair", "red"), *pictures)
    assert wrong.retrieval_rank > 1 and wrong.iou < 0.8


def test_psnr_is_over_all_pixels(judge: Judge) -> None:
    """A constant error of 0.1 is 20 dB."""
    thing = Thing("cube", "gray")
    rgb, opacity = judge.truth(thing)
    assert judge.score(thing, rgb + 0.1, opacity).psnr == pytest.approx(20, abs=1e-3)


def test_iou_by_hand() -> None:
    """One third, then two empty silhouettes, which agree."""
    a, b = torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    a[0, 0, 0], b[0, 0, :, 0] = 1, 1
    assert silhouette_iou(a, b) == pytest.approx((1 / 3 + 1) / 2)


@pytest.mark.parametrize(
    ("ending", "first_bytes", "height"),
    [(".mp4", b"\0\0\0 ftyp", 102), (".webm", b"\x1a\x45\xdf\xa3", 102), (".gif", b"GIF89a", 101), (".MP4", b"", 102)],
)
def test_videos_are_what_their_names_say(tmp_path: Path, ending: str, first_bytes: bytes, height: int) -> None:
    """The format of the ending, all frames, no white strips: an odd side gets one more row at most, the last again."""
    frames = torch.linspace(0, 0.9, 3).view(3, 1, 1, 1).expand(3, 3, 101, 100)
    path = tmp_path / f"video{ending}"
    write_video(frames, path, fps=5)
    assert path.read_bytes().startswith(first_bytes)
    found = iio.imread(path, plugin="pillow" if ending == ".gif" else "FFMPEG")
    assert found.shape == (3, height, 100, 3)
    expected = np.array([0, 0.45, 0.9])[:, None, None, None] * 255
    assert np.abs(found - expected).max() < 6


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory"), UserError("a mistake")])
def test_a_frame_that_fails_is_not_the_encoders_error(tmp_path: Path, error: Exception) -> None:
    """Frames are made while the video is written; what they raise is passed on, and nothing is left."""

    def frames() -> Iterator[torch.Tensor]:
        yield torch.zeros(3, 16, 16)
        raise error

    with pytest.raises(type(error), match=str(error)):
        write_video(frames(), tmp_path / "video.mp4", fps=5)
    assert not list(tmp_path.iterdir())


def test_a_video_of_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ends in \.mp4, \.webm, \.gif"):
        write_video(torch.zeros(2, 3, 16, 16), tmp_path / "video.avi", fps=5)
    assert not list(tmp_path.iterdir())


def test_sheet_lays_pictures_out_in_rows(tmp_path: Path) -> None:
    """Row by row, white where nothing is."""
    pictures = torch.arange(3).view(3, 1, 1, 1).expand(3, 3, 4, 5) / 4
    page = sheet(pictures, 2, gap=1)
    assert page.shape == (3, 9, 11)
    assert page[0, 0, 0] == 0 and page[0, 0, 6] == 0.25 and page[0, 5, 0] == 0.5 and page[0, 5, 6] == 1
    write_png(page, tmp_path / "p.png")
    assert iio.imread(tmp_path / "p.png").shape == (9, 11, 3)
