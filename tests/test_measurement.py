"""`carv3d measure`: a real pipeline's noise and cost, from the command line to the page."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from carv3d.config import find_config, load
from carv3d.measurement import findings, observe
from carv3d.measurement import report as report_of
from carv3d.measurement.observation import Observation
from carv3d.training.trainer import Trainer
from tests.test_cli import QUICK, carv3d

GRID = ["--renders", "1,2", "--resamples", "1,4"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "cone"
    few = ["training.steps=10", "mesh.formats=[]", "training.preview_every=0"]
    code, _, _ = carv3d("generate", "shapes", "a red cone", *QUICK, *few, "--output", str(folder))
    assert code == 0
    return folder


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    return Trainer(load(find_config("shapes"), ["prompt=a red cone", *QUICK]))


def test_from_run_to_page(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = carv3d("measure", str(run), "--budget", "6", "--precision", "9", *GRID, "--json", capsys=capsys)
    assert code == 0
    found = json.loads(out)
    keys = {"method", "R", "K", "variance", "variance_between", "variance_within", "cost_ms", "ecm", "re", "z"}
    assert all(keys <= row.keys() for row in found["rows"])
    settings = {(row["method"], row["R"], row["K"]) for row in found["rows"]}
    assert ("importance + stratified", 2, 4) in settings and len(settings) == 2 * (2 + 6)
    best = found["recommended"]
    top = max(found["rows"], key=lambda row: row["ecm"])
    assert (best["method"], best["K"]) == (top["method"], top["K"])
    assert best["R"] <= top["R"] and best["ecm_high"] >= top["ecm"]  # fewer renders, if they do as well
    overrides = best["setting"].split()
    guidance = load(find_config("shapes"), overrides).guidance
    assert (guidance.renders, guidance.resamples) == (best["R"], best["K"])
    assert found["trusted"]
    folder = run / "measure" / "step_000010"
    assert json.loads((folder / "measurement.json").read_text()) == found
    page = (folder / "report.html").read_text()
    assert page.count("<svg") == 3 and best["setting"] in page
    assert not re.search(r"(src|href)=[\"']https?:", page)


@pytest.fixture(scope="module")
def observed(trainer: Trainer) -> Observation:
    """Of four K; the scene is as it was."""
    before = [p.detach().clone() for p in trainer.parameters()]
    found = observe(trainer, renders=[1, 2, 4], resamples=[1, 2, 4, 8], budget=7, precision=9)
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.parameters(), strict=True))
    assert all(p.grad is None or not p.grad.any() for p in trainer.parameters())
    return found


def test_rows_are_consistent(observed: Observation) -> None:
    """Parts add up, R renders have 1 / R of the variance, and the baseline's ECM is 1."""
    report = report_of(observed)
    by = {(row.method, row.R, row.K): row for row in report.rows}
    for row in report.rows:
        assert row.variance == pytest.approx(row.variance_between + row.variance_within)
        assert row.variance_within == pytest.approx(row.variance_timestep + row.variance_noise)
        assert row.variance_low < row.variance < row.variance_high and row.ecm_low <= row.ecm_high
        assert row.variance == pytest.approx(by[row.method, 1, row.K].variance / row.R)
        if (row.method, row.K) == ("uniform", 1):
            assert row.ecm == pytest.approx(1) and row.re == 1
    assert report.moments["oracle"] <= min(report.moments["importance"], report.moments["uniform"])


def test_simulated_ratio_peaks_where_the_model_says(observed: Observation) -> None:
    """Costs are the model's, so ECM of uniform draws is the closed form, largest at the K next to sqrt(a b)."""
    report = report_of(observed, cost_ratio=4.0)
    assert report.cost.ratio == pytest.approx(4.0)
    a, b = 4.0, report.within.value / report.between.value
    for row in report.rows:
        if row.method == "uniform":
            closed = (a + 1) * (b + 1) * row.K / ((a + row.K) * (b + row.K))
            assert row.ecm == pytest.approx(closed, rel=1e-6)
    assert report.predicted_resamples == pytest.approx((a * b) ** 0.5)


def test_initial_scene_of_a_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "a red cone",
        "shapes",
        *QUICK,
        "--budget",
        "5",
        "--precision",
        "9",
        *GRID,
        "--output",
        str(tmp_path / "m"),
    ]
    code, _, err = carv3d("measure", *words, capsys=capsys)
    assert code == 0 and "guidance.renders=" in err and (tmp_path / "m" / "report.html").exists()


def test_one_k_can_be_measured(trainer: Trainer) -> None:
    """What a draw costs is then timed with another."""
    found = report_of(observe(trainer, renders=[1], resamples=[1], budget=5, precision=9))
    assert {row.K for row in found.rows} == {1} and found.cost.c_denoise > 0


def test_what_cannot_be_trusted_is_exit_code_one(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(findings, "TRUSTED_Z", -100.0)
    words = ["--budget", "5", "--precision", "9", *GRID, "--output", str(tmp_path / "m")]
    code, _, err = carv3d("measure", str(run), *words, capsys=capsys)
    assert code == 1 and "Do not trust" in err
    assert json.loads((tmp_path / "m" / "measurement.json").read_text())["trusted"] is False


def mistakes() -> list[Any]:
    return [
        (["--budget", "0.001"], "budget is too small"),
        (["--resamples", "1,zwei"], "whole numbers"),
        (["--renders", "0"], "from 1 to 4096"),
        (["--step", "77"], "77"),
        (["guidance.scale=4"], "give the run alone"),
        (["--output", "/proc/none"], "/proc/none"),
        (["--output", "~nobody-at-all/x"], "the home folder ~nobody-at-all is not known"),
    ]


@pytest.mark.parametrize("words, says", mistakes())
def test_mistakes_are_one_line(
    words: list[str], says: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = carv3d("measure", str(run), "--output", str(tmp_path / "m"), *words, capsys=capsys)
    assert code == 2 and says in err
    assert not (tmp_path / "m").exists(), "an empty folder is left"


def test_run_without_checkpoint(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    code, _, err = carv3d("measure", str(tmp_path / "run"), capsys=capsys)
    assert code == 2 and "checkpoint" in err
