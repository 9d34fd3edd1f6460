"""Scores against the true objects, and the files that pictures go to."""

from __future__ import annotations

from pathlib import Path

import imageio.v3 as iio
import pytest
import torch

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


def test_video_pads_instead_of_resizing(tmp_path: Path) -> None:
    """Sides that are no multiple of 16 keep their pixels; the rest is white."""
    frames = torch.zeros(3, 3, 40, 50)
    write_video(frames, tmp_path / "v.mp4", fps=5)
    found = iio.imread(tmp_path / "v.mp4", plugin="FFMPEG")
    assert found.shape == (3, 48, 64, 3)
    assert found[:, :38, :48].max() < 40 and found[:, 42:].min() > 215


def test_sheet_lays_pictures_out_in_rows(tmp_path: Path) -> None:
    """Row by row, white where nothing is."""
    pictures = torch.arange(3).view(3, 1, 1, 1).expand(3, 3, 4, 5) / 4
    page = sheet(pictures, 2, gap=1)
    assert page.shape == (3, 9, 11)
    assert page[0, 0, 0] == 0 and page[0, 0, 6] == 0.25 and page[0, 5, 0] == 0.5 and page[0, 5, 6] == 1
    write_png(page, tmp_path / "p.png")
    assert iio.imread(tmp_path / "p.png").shape == (9, 11, 3)
