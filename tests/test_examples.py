"""The files of docs/examples run as they stand: each is a plug-in in one file, or a loop of one's own."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

from carv3d.comparison import yardsticks
from carv3d.comparison.execution import _Children
from carv3d.runs import read_metrics
from tests.test_cli import carv3d
from tests.test_comparison import in_process, small_judge

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"

CARD = ["mesh.formats=[]", "regularisers.total_variation=0"]  # a card has neither

SHORT = [
    "cameras.height=32",
    "cameras.width=32",
    "training.steps=3",
    "training.preview_every=0",
    "training.checkpoint_every=2",
    "renderer.samples=12",
    "renderer.occupancy_resolution=8",
    "turntable.frames=2",
    "turntable.size=32",
    "turntable.sheet=32",
    "mesh.resolution=16",
    "mesh.texture=vertex",
    "threads=1",
]


@pytest.fixture
def on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The examples' folder is on the path, as their first lines say."""
    monkeypatch.syspath_prepend(str(EXAMPLES))


@pytest.mark.parametrize(
    "words, log",
    [
        (["guidance.objective=own_objective.Mixed", "guidance.objective.share=0.7"], ""),
        (["guidance.objective=own_stateful_objective.Normalised"], "residual_rms"),
        (["scene.type=own_scene.Balls", "scene.count=8"], ""),
        (["scene=own_image_scene.Card", "cameras=own_cameras.Frontal", *CARD], ""),
        (["teacher.type=own_teacher.Colour", "teacher.red=0.9", "guidance.objective=csd"], ""),
        (["guidance.coupling=own_coupling.orthogonal", "guidance.proposal=own_coupling.flat_and_weighted"], ""),
    ],
    ids=lambda v: v[0].partition("=")[2].partition(".")[0] if isinstance(v, list) else "",
)
def test_plug_ins_in_one_file(on_path: None, tmp_path: Path, words: list[str], log: str) -> None:
    """`carv3d generate` takes each, from training over --resume to the results."""
    path = str(tmp_path / "run")
    assert carv3d("generate", "a red cone", *words, *SHORT, "--output", path)[0] == 0
    assert carv3d("generate", "--resume", path, "training.steps=5")[0] == 0
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5] and (not log or rows[-1][log] > 0)
    assert (tmp_path / "run" / "contact_sheet.png").exists()
    assert "mesh.formats=[]" in words or (tmp_path / "run" / "mesh" / "mesh.glb").exists()


def test_measure_takes_a_plug_in(on_path: None, tmp_path: Path) -> None:
    """And its camera sampler, whose cameras have no table."""
    words = ["guidance.objective=own_objective.Mixed", "cameras=own_cameras.Frontal", "teacher=own_teacher.Colour"]
    more = ["cameras.height=16", "cameras.width=16", "threads=1", "--budget", "6", "--precision", "9"]
    more += ["--resamples", "1,2"]
    code, _, err = carv3d(
        "measure", "a red cone", *words, *more, "--renders", "1", "--output", str(tmp_path / "report")
    )
    assert code == 0, err
    assert (tmp_path / "report" / "report.html").exists()


def test_a_scene_and_a_renderer_that_do_not_fit_leave_no_folder(
    on_path: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run"
    words = ["a red cone", "teacher.type=exact", "teacher.views=20", "renderer=own_image_scene.Flat"]
    words += [word for word in SHORT if not word.startswith("renderer")]
    code, _, err = carv3d("generate", *words, "--output", str(path), capsys=capsys)
    said = "renderer.type=own_image_scene.Flat cannot draw scene.type=gaussians"
    assert code == 2 and said in " ".join(err.split()) and not path.exists()


def test_compare_takes_a_plug_in(
    on_path: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cameras that have no order among them; quality by the true objects, since its teacher is the exact one."""
    monkeypatch.setattr(_Children, "run", in_process)
    monkeypatch.setattr(yardsticks, "Judge", small_judge)
    (tmp_path / "prompts.txt").write_text("a red cone\n")
    for name, count in (("one", 1), ("two", 2)):
        text = f"base: shapes\ncameras: own_cameras.Frontal\nguidance: {{resamples: {count}, strata: none}}\n"
        (tmp_path / f"{name}.yaml").write_text(text)
    configs = [str(tmp_path / f"{name}.yaml") for name in ("one", "two")]
    words = ["teacher.type=exact", "teacher.views=20", "teacher.neighbours=4", "mesh.formats=[]", *SHORT]
    where = ["--prompts", str(tmp_path / "prompts.txt"), "--seeds", "1", "--output", str(tmp_path / "out")]
    code, _, err = carv3d("compare", *configs, *words, *where, "--equal", "calls", capsys=capsys)
    assert code == 0, err
    assert "own_cameras.Frontal" in (tmp_path / "out" / "report.html").read_text()


def test_evaluate_knows_no_truth_of_another_teacher(
    on_path: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Though the prompt is one of the built-in world's."""
    path = str(tmp_path / "run")
    words = ["teacher=own_teacher.Colour", "mesh.formats=[]", *SHORT]
    assert carv3d("generate", "a red cone", *words, "--output", path)[0] == 0
    code, _, err = carv3d("evaluate", path, capsys=capsys)
    assert code == 2 and "the teacher is not of the built-in world" in " ".join(err.split())


def test_a_plug_in_that_cannot_make_a_mesh_says_so(
    on_path: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is written."""
    path = tmp_path / "run"
    words = ["a red cone", "scene=own_image_scene.Card", "mesh.formats=[glb]"]
    code, _, err = carv3d("generate", *words, "--output", str(path), capsys=capsys)
    assert code == 2 and "mesh.formats must be" in err and not path.exists()


@pytest.mark.parametrize(
    "words, said",
    [
        (["playground.py", "--seconds", "1"], r"SDS, K = 1: \d+ steps"),
        (["bare_pipeline.py", "--steps", "2"], r"step 0: loss [\d.e+]+, timesteps \[\d+"),
        (["own_gradients.py", "--renders", "3"], r"K = (inf|[\d.]+) pays most"),
    ],
    ids=lambda v: v[0] if isinstance(v, list) else "",
)
def test_loops_of_ones_own(
    on_path: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    """Each file as a program, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", words)
    threads = torch.get_num_threads()
    try:
        runpy.run_path(str(EXAMPLES / words[0]), run_name="__main__")
    finally:
        torch.set_num_threads(threads)
    assert re.search(said, capsys.readouterr().out)


def test_the_list_of_examples_is_whole() -> None:
    text = (EXAMPLES / "README.md").read_text()
    assert all(f"]({path.name})" in text for path in EXAMPLES.glob("*.py"))
