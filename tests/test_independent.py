"""Results that do not depend on one another."""

from __future__ import annotations

from pathlib import Path

import pytest

from carv3d.errors import UserError
from carv3d.runs.independent import make_each
from tests.test_cli import QUICK, carv3d


def test_each_is_made_and_the_failures_are_said_at_the_end() -> None:
    """Whatever a library raises."""
    made = []

    def fails(error: Exception) -> None:
        raise error

    results = {
        "a": lambda: fails(UserError("no room")),
        "b": lambda: made.append("b"),
        "c": lambda: fails(ZeroDivisionError()),
        "d": lambda: made.append("d"),
    }
    with pytest.raises(UserError, match=r"a: no room; c: ZeroDivisionError; the other results are made.*then again"):
        make_each(results, "again")
    assert made == ["b", "d"]
    make_each({"b": lambda: None}, "again")


def test_a_missing_video_encoder_costs_the_video_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The mesh and the contact sheet of the training are there, and --resume makes the video later."""

    def without(*_: object, **__: object) -> None:
        raise RuntimeError("No ffmpeg exe could be found.")

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("carv3d.images.get_writer", without)
        code, _, err = carv3d("generate", "shapes", "a red cone", *QUICK, "--output", str(run), capsys=capsys)
    said = " ".join(err.split())
    assert code == 2 and "turntable.mp4: the video encoder failed (No ffmpeg exe could be found.)" in said
    assert "install imageio-ffmpeg" in said and f"carv3d generate --resume {run} makes them" in said
    assert (run / "contact_sheet.png").exists() and (run / "mesh" / "mesh.glb").exists()
    assert not (run / "turntable.mp4").exists()
    assert carv3d("generate", "--resume", str(run), capsys=capsys)[0] == 0
    assert (run / "turntable.mp4").exists()
