"""The campaign of kills, faults and bad inputs: a small part of it, and that it sees what is broken."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.campaign import disk_faults
from scripts.campaign.baseline import torn
from scripts.campaign.commands import contents, differences
from scripts.campaign.server import Box, Ended
from scripts.campaign.trial import Trial, generator, outside

needs_a_compiler = pytest.mark.skipif(disk_faults.compiler() is None, reason="disk faults need Linux and a C compiler")


@needs_a_compiler
@pytest.mark.slow
def test_a_small_campaign(tmp_path: Path) -> None:
    """With a fixed seed: every kind is tried, and nothing is lost, half-written or unexplained."""
    words = ["kills", "faults", "fuzz", "files", "--trials", "8", "--jobs", "1", "--quick"]
    words += ["--work", str(tmp_path / "w")]
    command = [sys.executable, "-m", "scripts.campaign", *words]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr[-4000:]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in ended.stdout.splitlines()]
    assert {row[0]: row[1:3] for row in rows if len(row) > 1 and row[1].isdigit()} == {
        "kills": ["8", "8"],
        "disk faults": ["4", "4"],
        "damaged files": ["4", "4"],
        "bad inputs": ["8", "8"],
        "odd files": ["8", "8"],
    }


_WRITER = """
import sys
from pathlib import Path
from scripts.campaign.disk_faults import Action, DiskFault
folder, action, at, number, log = sys.argv[1:]
DiskFault(Action[action], Path(folder), int(at), int(number), Path(log)).arm()
for name in "ab":
    with open(f"{folder}/{name}", "wb", buffering=0) as file:
        file.write(b"12345678")
"""


@needs_a_compiler
@pytest.mark.parametrize(
    ("action", "at", "code", "left"),
    [
        ("NOTHING", 1, 0, {"a": 8, "b": 8}),
        ("END_BEFORE", 1, -9, {}),
        ("END_AFTER", 1, -9, {"a": 0}),
        ("END_BEFORE", 2, -9, {"a": 0}),
        ("END_HALF", 2, -9, {"a": 4}),
        ("END_AFTER", 4, -9, {"a": 8, "b": 8}),
        ("FAIL_ONCE", 4, 1, {"a": 8, "b": 0}),
        ("FAIL_FROM_THEN", 3, 1, {"a": 8}),
    ],
)
def test_faults_at_a_call(tmp_path: Path, action: str, at: int, code: int, left: dict[str, int]) -> None:
    """Two files are opened and written: four calls."""
    library, folder = disk_faults.build(tmp_path), tmp_path / "work"
    folder.mkdir()
    command = [sys.executable, "-c", _WRITER, str(folder), action, str(at), "28", str(tmp_path / "log")]
    environment = os.environ | {"LD_PRELOAD": str(library)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == code, ended.stderr
    assert {path.name: path.stat().st_size for path in folder.iterdir()} == left
    assert ("No space left on device" in ended.stderr) == action.startswith("FAIL")


def test_a_broken_result_is_seen(tmp_path: Path) -> None:
    """A file that differs, one that is missing, one too many; the seconds of metrics do not count."""
    (tmp_path / "mesh").mkdir()
    (tmp_path / "mesh" / "a.obj").write_text("v 1")
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 1, "loss": 2.0, "seconds": 3}\n')
    before = contents(tmp_path)
    metrics.write_text('{"step": 1, "loss": 2.0, "seconds": 9}\n')
    assert not differences(before, contents(tmp_path))
    metrics.write_text('{"step": 1, "loss": 2.5, "seconds": 3}\n')
    (tmp_path / "mesh" / "a.obj").write_text("v ")
    (tmp_path / "b.png").write_text("")
    found = contents(tmp_path)
    assert differences(before, found) == ["mesh/a.obj differs", "metrics.jsonl differs", "b.png is left over"]
    assert torn(tmp_path, before, before | {"b.png": found["b.png"]}) == [
        "mesh/a.obj is neither old nor new",
        "mesh/ has files of two exports",
    ]


@pytest.mark.parametrize(
    ("ended", "kind"),
    [
        (Ended(0, "", 1.0, False), None),
        (Ended(2, "error: no such key", 1.0, False), None),
        (Ended(2, "", 1.0, False), "other"),
        (Ended(1, "error: carv3d failed (KeyError: 3); the details are in x", 1.0, False), "traceback"),
        (Ended(1, "Traceback (most recent call last):\n  File", 1.0, False), "traceback"),
        (Ended(-9, "", 60.0, True), "hang"),
        (Ended(139, "", 1.0, False), "other"),
    ],
)
def test_a_wrong_end_is_seen(ended: Ended, kind: str | None) -> None:
    trial = Trial("kills", "a case")
    trial.ran(["generate"], ended)
    assert list(trial.problems) == ([kind] if kind else []) and trial.right == (kind is None)


def test_files_outside_are_seen(tmp_path: Path) -> None:
    box = Box(tmp_path).make()
    (box.work / "run").mkdir()
    (box.home / ".cache").mkdir()
    assert not outside(box, ["run"])
    for path in (box.work / "other", box.home / "x", box.temporary / "y"):
        path.write_text("")
    assert sorted(outside(box, ["run"])) == ["home/x", "tmp/y", "work/other"]


def test_a_trial_is_a_function_of_seed_kind_and_number() -> None:
    first: random.Random = generator(3, "fuzz", 7)
    assert first.random() == generator(3, "fuzz", 7).random() != generator(3, "fuzz", 8).random()


@pytest.mark.parametrize(
    ("words", "said"),
    [("nothing", "no campaign 'nothing': choose from kills, faults, fuzz, files"), ("", "Missing arg")],
)
def test_mistakes_are_one_line(words: str, said: str) -> None:
    command = [sys.executable, "-m", "scripts.campaign", *words.split()]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2 and re.search(f"^error: {said}", ended.stderr, re.MULTILINE) and not ended.stdout
