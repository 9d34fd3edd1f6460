"""Methods against each other: the runs and the page."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from carv3d.comparison import comparison as module
from carv3d.comparison import execution, plan, yardsticks
from carv3d.comparison.execution import _Children, check_runs, execute, folder_name, jobs_of
from carv3d.comparison.plan import make_plan, methods_of
from carv3d.config import load
from carv3d.errors import UserError
from carv3d.evaluation.clip import Alignment, Clip
from carv3d.evaluation.evaluation import Judge
from carv3d.generation.generation import generate
from carv3d.runs import Run
from tests.comparisons import QUIET, TINY, known_times, planned, tiny
from tests.pipelines import make_clip, make_pipeline
from tests.test_cli import carv3d

pytestmark = pytest.mark.slow

timed = pytest.fixture(known_times)
small_judge = functools.cache(lambda: Judge(16))


def test_different_prompts_have_different_folders() -> None:
    """Though their slugs are the same: punctuation, and what is cut off at the end."""
    prompts = ["a red cone", "a red cone!", "a-red cone", "x" * 60, "x" * 61]
    assert len({folder_name(prompt, 0) for prompt in prompts}) == len(prompts)
    assert folder_name("a red cone", 2) == "a-red-cone-seed2"


def in_process(_: _Children, command: list[str]) -> tuple[int, str]:
    """What `carv3d generate CONFIG prompt=... seed=... --output RUN` makes, without the seconds of a new process."""
    verb, config_file, prompt, seed, option, path = command[3:]
    assert (verb, option) == ("generate", "--output")
    config = load(config_file, [prompt, seed])
    with Run.create(config, "test", "test", folder=path, device=torch.device("cpu")) as run:
        generate(run, resumed=False, console=QUIET)
    return 0, ""


def refuse(_: _Children, command: list[str]) -> tuple[int, str]:
    raise AssertionError(f"nothing is to be run, but {command}")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    """A comparison of three methods, one prompt, one seed; and what --json printed."""
    folder = tmp_path_factory.mktemp("comparison")
    (folder / "prompts.txt").write_text("# one\na red cone\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Children, "run", in_process)
        patch.setattr(yardsticks, "Judge", small_judge)
        figures = compare(folder, "--json")
    return folder / "out", figures


def compare(folder: Path, *words: str) -> dict[str, object]:
    """The verb; gives what it printed."""
    out = io.StringIO()
    where = ["--prompts", str(folder / "prompts.txt"), "--seeds", "1", "--output", str(folder / "out")]
    with contextlib.redirect_stdout(out):
        code, _, _ = carv3d("compare", "shapes", *TINY, *where, *words)
    assert code == 0
    return dict(json.loads(out.getvalue())) if "--json" in words else {}


def test_comparison_end_to_end(finished: tuple[Path, dict[str, object]]) -> None:
    """Every run is an ordinary one, at equal time; figures and the page are there."""
    folder, figures = finished
    methods: list[dict[str, float]] = figures["methods"]  # type: ignore[assignment]
    assert [row["name"] for row in methods] == ["sds", "reuse", "paper", "carv"]
    assert figures["baseline"] == "sds" and figures["prompts"] == ["a red cone"] and figures["equal"] == "time"
    budget = methods[-1]["steps"] * methods[-1]["ms_per_step"]
    for row in methods:
        assert abs(row["steps"] * row["ms_per_step"] - budget) <= row["ms_per_step"] / 2 + 1e-9
        assert 5 < row["psnr"] < 40 and 0 <= row["iou"] <= 1 and row["psnr_low"] is None
        run = Run.open(folder / str(row["name"]) / "a-red-cone-seed0")
        assert run.turntable.exists() and run.config.training.steps == row["steps"]
    assert methods[0]["difference"] == 0.0 and methods[0]["speedup"] == 1.0


def test_page_holds_everything_itself(finished: tuple[Path, dict[str, object]]) -> None:
    folder, _ = finished
    page = (folder / "report.html").read_text()
    assert all(f"<td>{name}</td>" in page for name in ("sds", "reuse", "paper", "carv"))
    assert "one seed cannot tell" in page
    assert page.count('src="data:video/mp4') == 4 and page.count('src="data:image/png') == 5  # and the true object
    assert not re.search(r'(src|href)\s*=\s*["\']?(https?:|//|file:)', page)
    assert page.count("<svg") == 3 and len(page) < 2e6


def test_teacher_without_true_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any diffusers folder and any prompt: pictures and costs, and a word on why there is no quality."""
    teacher = make_pipeline(tmp_path / "teacher", camera=False)
    (tmp_path / "prompts.txt").write_text("a dragon\n")
    monkeypatch.setattr(_Children, "run", in_process)
    words = [f"teacher.path={teacher}", *(w for w in TINY if not w.startswith("teacher")), "training.steps=2"]
    where = ["--prompts", str(tmp_path / "prompts.txt"), "--seeds", "1", "--output", str(tmp_path / "out")]
    assert carv3d("compare", "shapes", *words, *where, "--equal", "calls")[0] == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Quality needs true objects to compare with, or --clip MODEL" in page and "<svg" not in page
    assert page.count('src="data:video/mp4') == 4 and page.count('src="data:image/png') == 4
    kept = Run.open(tmp_path / "out" / "sds" / "a-dragon-seed0")
    assert kept.config.training.steps == 8 and len(kept.checkpoints.paths()) == 2  # no curve, so no more


def test_quality_by_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without true objects, CLIP gives curves, differences and a page; a comparison by something else is refused."""
    teacher, clip = make_pipeline(tmp_path / "teacher", camera=False), make_clip(tmp_path / "clip")
    (tmp_path / "prompts.txt").write_text("a dragon\n")
    monkeypatch.setattr(_Children, "run", in_process)
    words = [f"teacher.path={teacher}", *(w for w in TINY if not w.startswith("teacher")), "training.steps=2"]
    where = ["--prompts", str(tmp_path / "prompts.txt"), "--seeds", "1", "--output", str(tmp_path / "out")]
    shapes, judged = [], Clip.alignment

    def alignment(self: Clip, rgb: Tensor, prompt: str, prompts: Sequence[str]) -> Alignment:
        shapes.append(tuple(rgb.shape))
        return judged(self, rgb, prompt, prompts)

    monkeypatch.setattr(Clip, "alignment", alignment)
    monkeypatch.setattr("carv3d.evaluation.clip._VIEWS", 2)
    monkeypatch.setattr("carv3d.evaluation.clip._SIZE", 48)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code, _, _ = carv3d("compare", "shapes", *words, *where, "--equal", "calls", "--clip", str(clip), "--json")
    assert code == 0
    assert set(shapes) == {(2, 3, 48, 48)}  # not the 16 x 16 that was trained on
    for row in json.loads(out.getvalue())["methods"]:
        assert 0 <= row["clip_score"] <= 100 and row["r_precision"] in {i / 20 for i in range(21)}
        assert "psnr" not in row and row["difference"] is not None
    page = (tmp_path / "out" / "report.html").read_text()
    assert "CLIP score" in page and "R-precision" in page and "PSNR" not in page and " dB" not in page
    assert page.count("<svg") == 3 and "true object:" not in page
    assert carv3d("compare", "shapes", *words, *where, "--equal", "calls")[0] == 2


def test_second_call_runs_nothing(finished: tuple[Path, dict[str, object]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it time or measure anything: the figures are the same."""
    folder, figures = finished
    monkeypatch.setattr(_Children, "run", refuse)
    monkeypatch.setattr(plan, "step_costs", refuse)
    monkeypatch.setattr(module, "measure", refuse)
    assert compare(folder.parent, "--json") == figures


def test_run_that_was_cut_off_is_gone_on_with(
    finished: tuple[Path, dict[str, object]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By `generate --resume` in a process of its own, to the same figures."""
    folder, figures = finished
    shutil.copytree(folder.parent, tmp_path / "copy")
    run = tmp_path / "copy" / "out" / "carv" / "a-red-cone-seed0"
    for name in ("turntable.mp4", "quality.json"):
        (run / name).unlink()
    for step in sorted(run.glob("checkpoints/step_*"))[3:]:
        shutil.rmtree(step)
    resumed: list[list[str]] = []
    real = _Children.run

    def count(self: _Children, command: list[str]) -> tuple[int, str]:
        resumed.append(command[3:])
        return real(self, command)

    monkeypatch.setattr(_Children, "run", count)
    monkeypatch.setattr(yardsticks, "Judge", small_judge)
    again = compare(tmp_path / "copy", "--json")
    assert resumed == [["generate", "--resume", str(run)]]
    psnr = [[row["psnr"] for row in found["methods"]] for found in (figures, again)]  # type: ignore[attr-defined]
    assert psnr[0] == psnr[1] and (run / "turntable.mp4").exists()


def test_folder_that_was_not_yet_a_run_is_made_anew(
    finished: tuple[Path, dict[str, object]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before environment.json; but somebody's files in its place are left alone."""
    folder, figures = finished
    shutil.copytree(folder.parent, tmp_path / "copy")
    run = tmp_path / "copy" / "out" / "sds" / "a-red-cone-seed0"
    for path in run.iterdir():
        if path.name not in (".lock", "config.yaml"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    monkeypatch.setattr(_Children, "run", in_process)
    monkeypatch.setattr(yardsticks, "Judge", small_judge)
    again = compare(tmp_path / "copy", "--json")
    assert (run / "turntable.mp4").exists()
    psnr = [[row["psnr"] for row in found["methods"]] for found in (figures, again)]  # type: ignore[attr-defined]
    assert psnr[0] == psnr[1]
    for name in ("environment.json", "turntable.mp4"):
        (run / name).unlink()
    (run / "precious.txt").write_text("mine")
    words = ["--prompts", str(folder.parent / "prompts.txt"), "--seeds", "1", "--output", str(run.parents[1])]
    assert carv3d("compare", "shapes", *TINY, *words)[0] == 2
    assert (run / "precious.txt").read_text() == "mine"


def test_runs_that_cannot_be_compared_are_refused(
    finished: tuple[Path, dict[str, object]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of another device or another config: one line, exit code 2, before anything is run."""
    folder, _ = finished
    shutil.copytree(folder.parent, tmp_path / "copy")
    run = tmp_path / "copy" / "out" / "reuse" / "a-red-cone-seed0"
    words = ["--prompts", str(folder.parent / "prompts.txt"), "--seeds", "1", "--output", str(run.parents[1])]
    environment = run / "environment.json"
    environment.write_text(environment.read_text().replace('"device": "cpu"', '"device": "NVIDIA H100"'))
    code, _, err = carv3d("compare", "shapes", *TINY, *words, capsys=capsys)
    assert code == 2 and "made on NVIDIA H100, the comparison on cpu" in err and "Traceback" not in err
    shutil.copy(folder / "reuse" / "a-red-cone-seed0" / "environment.json", environment)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("views: 20", "views: 30"))
    code, _, err = carv3d("compare", "shapes", *TINY, *words, capsys=capsys)
    assert code == 2 and "another config than reuse (teacher.views: 30 and 20)" in err


def test_methods_on_different_devices_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    asked = [("a", tiny()), ("b", tiny("device=cuda"))]
    with pytest.raises(UserError, match="must run on one device, not a on cpu, b on cuda"):
        make_plan(asked, ["a red cone"], 1, "", "time", 1, tmp_path)


def test_failed_run_says_which_and_why(tmp_path: Path, timed: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """And no further run is begun."""
    found, begun = planned(tmp_path), []

    def fail(_: _Children, command: list[str]) -> tuple[int, str]:
        begun.append(command)
        time.sleep(0.05)
        return 2, "something before\nerror: the disk is full\n\n"

    monkeypatch.setattr(_Children, "run", fail)
    with pytest.raises(UserError, match="sds/a-red-cone-seed0 failed: the disk is full"):
        execute(jobs_of(found, tmp_path), found, tmp_path, 1, QUIET)
    assert len(begun) <= 2


def test_prompts_reach_the_run_as_they_stand(tmp_path: Path, timed: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Quotes, interpolations and what looks like an override."""
    prompts = ('"quoted" thing', "cost: ${seed}", "a=b", "naïve ½")
    found, seen = planned(tmp_path, prompts=prompts), []

    def note(_: _Children, command: list[str]) -> tuple[int, str]:
        seen.append(load(command[4], command[5:7]).prompt)
        return 0, ""

    monkeypatch.setattr(_Children, "run", note)
    execute(jobs_of(found, tmp_path), found, tmp_path, 1, QUIET)
    assert seen == [prompt for prompt in prompts for _ in found.methods]


def test_interruption_leaves_no_process(tmp_path: Path, timed: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM as well as Ctrl-C: the runs in hand are ended, those that wait are not begun."""
    found, codes = planned(tmp_path), []

    def sleep(_: object, __: object, children: _Children) -> None:
        codes.append(children.run(["sleep", "60"])[0])

    monkeypatch.setattr(execution, "_run", sleep)
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        execute(jobs_of(found, tmp_path), found, tmp_path, 2, QUIET)
    assert time.monotonic() - started < 20
    assert codes == [-signal.SIGTERM, -signal.SIGTERM]  # of three
    children = subprocess.run(["ps", "--ppid", str(os.getpid()), "-o", "comm="], capture_output=True, text=True).stdout
    assert "sleep" not in children


@pytest.mark.parametrize(
    "words, message",
    [
        (["--equal", "steps"], "--equal takes time or calls, not 'steps'"),
        (["prompt=a red cone"], "takes its prompts from --prompts FILE"),
        (["nowhere.yaml"], "no config 'nowhere.yaml'"),
        (["shapes", "shapes"], "two configs are named shapes"),
        (["--prompts", "nowhere.txt"], "no prompt file nowhere.txt"),
        (["guidance.resamples=0"], "guidance.resamples"),
        (["--prompts", "elephant.txt"], "elephant.txt: 'a red elephant'.*it knows objects: (?!.*--force)"),
        (["teacher.path=/nowhere"], "no teacher at '/nowhere'"),
    ],
)
def test_mistakes_leave_nothing_behind(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line, exit code 2, and no folder."""
    monkeypatch.chdir(tmp_path)
    Path("elephant.txt").write_text("a red elephant\n")
    code, _, err = carv3d("compare", *words, "--output", "out", capsys=capsys)
    assert code == 2 and re.search(message, err.splitlines()[-1]), err
    assert "Traceback" not in err and not Path("out").exists()


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = carv3d("compare", "--help", capsys=capsys)
    assert code == 0 and "carv3d compare" in out


def test_check_runs_accepts_other_book_keeping(finished: tuple[Path, dict[str, object]], tmp_path: Path) -> None:
    """Runs are ordinary runs: how many previews and checkpoints they kept makes no difference."""
    folder, _ = finished
    shutil.copytree(folder, tmp_path / "out")
    found = make_plan(methods_of([("shapes", tiny())]), ["a red cone"], 1, "", "time", 1, tmp_path / "out")
    config = tmp_path / "out" / "sds" / "a-red-cone-seed0" / "config.yaml"
    config.write_text(re.sub(r"preview_every: \d+", "preview_every: 7", config.read_text()))
    check_runs(jobs_of(found, tmp_path / "out"), found)
    config.write_text(re.sub(r"seed: \d+", "seed: 7", config.read_text()))
    with pytest.raises(UserError, match="seed: 7 and 0"):
        check_runs(jobs_of(found, tmp_path / "out"), found)


def test_shipped_prompts_go_into_a_wheel() -> None:
    """Next to the configs, where they are looked for."""
    setup = (Path(__file__).resolve().parents[1] / "setup.py").read_text()
    assert '"*/*.txt"' in setup.partition('"carv3d.configs": [')[2].partition("]")[0]
