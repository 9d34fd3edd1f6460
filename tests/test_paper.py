"""The paper's set-up: its numbers, and its arms end to end on a pipeline of the same architecture, only narrow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from carv3d.comparison.execution import _Children
from carv3d.comparison.plan import methods_of
from carv3d.config import find_config, load, validate
from carv3d.prompts.files import find_prompts, read_prompts
from carv3d.runs import Run, read_metrics
from tests.pipelines import make_clip
from tests.random_sd import make_narrow
from tests.test_cli import carv3d
from tests.test_comparison import in_process

ARMS = ("paper/uniform-4x1", "paper/carv-1x16", "paper/ours-1x16")


def test_numbers_are_the_papers() -> None:
    """arXiv 2605.21489, section 5: set-up of text to 3D, and the two arms of its training comparison."""
    config = load(find_config("paper"), ["prompt=a fox"])
    validate(config)
    scene, cameras, guidance = config.scene, config.cameras, config.guidance
    assert (scene.levels, scene.features, scene.log2_table, scene.hidden, scene.layers) == (16, 2, 19, 64, 1)
    assert (cameras.height, cameras.width, config.teacher.image_size) == (256, 256, 512)
    assert (cameras.elevation, cameras.azimuth, cameras.fov) == ([-10, 45], [-180, 180], [15, 80])
    assert cameras.distance == [2, 2] and cameras.order == "independent"
    assert guidance.scale == 100 and (guidance.t_min.first, guidance.t_max.last) == (0.02, 0.98)
    assert config.optimizer.betas == [0.9, 0.99] and config.optimizer.eps == 1e-15
    assert config.optimizer.lr.first == config.optimizer.lr.last == 0.005 and config.training.steps == 5000
    arms = {name: load(find_config(name)).guidance for name in ARMS}
    settings = [(g.renders, g.resamples, g.proposal, g.strata, g.coupling) for g in arms.values()]
    assert settings == [
        (4, 1, "uniform", "none", "independent"),
        (1, 16, "importance", "render", "independent"),
        (1, 16, "importance", "render", "antithetic"),
    ]
    assert [name for name, _ in methods_of([(arm, load(find_config(arm))) for arm in ARMS])] == list(ARMS)
    prompts = read_prompts(find_prompts("prompts/paper.txt"))
    assert len(prompts) == 30 and prompts[8] == "A tarnished brass pocket watch"


@pytest.mark.slow
def test_the_arms_run_against_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`carv3d compare` of the three, by CLIP: narrow, of small pictures, and a few steps."""
    monkeypatch.setattr("carv3d.evaluation.clip._VIEWS", 2)
    monkeypatch.setattr("carv3d.evaluation.clip._SIZE", 24)
    monkeypatch.setattr(_Children, "run", in_process)
    teacher, clip = make_narrow(tmp_path / "teacher"), make_clip(tmp_path / "clip")
    (tmp_path / "prompts.txt").write_text("A fluffy, orange cat\n")
    words = [f"teacher.path={teacher}", "teacher.mirrors=[]", "teacher.dtype=float32", "device=cpu", "threads=1"]
    words += ["teacher.image_size=64", "scene.log2_table=12", "scene.levels=4", "cameras.height=12", "cameras.width=12"]
    words += ["renderer.samples=8", "regularisers.orientation=0"]  # normals cost most without a GPU
    words += ["training.steps=1", "training.preview_every=0", "training.checkpoint_every=1", "mesh.formats=[]"]
    words += ["turntable.frames=2", "turntable.size=32", "turntable.sheet=32"]
    where = ["--prompts", str(tmp_path / "prompts.txt"), "--seeds", "1", "--output", str(tmp_path / "out")]
    code, out, err = carv3d(
        "compare", *ARMS, *words, *where, "--equal", "calls", "--clip", str(clip), "--json", capsys=capsys
    )
    assert code == 0, err
    rows = json.loads(out)["methods"]
    assert [row["name"] for row in rows] == [name.rpartition("/")[2] for name in ARMS]
    assert all(0 <= row["clip_score"] <= 100 for row in rows)
    for row, draws in zip(rows, (4, 16, 16), strict=True):
        run = next((tmp_path / "out" / row["name"]).iterdir())
        with Run.open(run) as opened:
            g = opened.config.guidance
            assert g.renders * g.resamples == draws and (run / "contact_sheet.png").is_file()
        assert all(entry["gradient_norm"] > 0 for entry in read_metrics(run / "metrics.jsonl"))
