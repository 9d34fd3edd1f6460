"""Methods against each other: the plan, the runs, the statistics and the page."""

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
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from carv3d.comparison import comparison as module
from carv3d.comparison import execution, plan, yardsticks
from carv3d.comparison.calibration import Cost, step_costs
from carv3d.comparison.execution import _Children, check_runs, execute, folder_name, jobs_of
from carv3d.comparison.plan import Plan, equal_steps, make_plan, methods_of
from carv3d.comparison.statistics import Array, Bootstrap, Curves, Result, reach, results
from carv3d.config import Config, find_config, load
from carv3d.errors import UserError
from carv3d.evaluation import Judge
from carv3d.generation import generate
from carv3d.runs import Run
from tests.pipelines import make_clip, make_pipeline
from tests.test_cli import carv3d

TINY = [
    *("teacher.type=exact", "teacher.views=20", "teacher.neighbours=4", "device=cpu", "threads=1"),
    *("scene.resolution=12", "cameras.height=16", "cameras.width=16", "renderer.samples=12"),
    *("training.steps=20", "guidance.resamples=4"),
]
QUIET = Console(quiet=True)
small_judge = functools.cache(lambda: Judge(16))


def tiny(*overrides: str) -> Config:
    return load(find_config("shapes"), [*TINY, *overrides])


def test_different_prompts_have_different_folders() -> None:
    """Though their slugs are the same: punctuation, and what is cut off at the end."""
    prompts = ["a red cone", "a red cone!", "a-red cone", "x" * 60, "x" * 61]
    assert len({folder_name(prompt, 0) for prompt in prompts}) == len(prompts)
    assert folder_name("a red cone", 2) == "a-red-cone-seed2"


# ------------------------------------------------------------------------------------------ plan


def test_one_config_gives_four_methods() -> None:
    """They differ in nothing but the estimator and the cameras' order; the config itself comes once."""
    methods = dict(methods_of([("shapes", tiny())]))
    settings = {
        name: (c.guidance.resamples, c.guidance.proposal, c.guidance.strata, c.guidance.renders)
        for name, c in methods.items()
    }
    assert list(settings) == ["sds", "reuse", "paper", "carv"]  # the first is the baseline
    assert settings["sds"] == (1, "uniform", "none", 1)
    assert settings["reuse"] == (4, "uniform", "none", 1)
    assert settings["paper"] == settings["carv"] == (4, "importance", "render", 1)
    assert methods["paper"].guidance.noise == "independent" and methods["carv"].guidance.noise == "antithetic"
    assert list(dict(methods_of([("paper", methods["paper"])]))) == ["sds", "reuse", "carv"]
    assert plan.differing_key(methods["sds"], methods["carv"]) == "cameras.order: independent and sequence"


@pytest.mark.parametrize(
    "configs, message",
    [
        ([("shapes", tiny("guidance.resamples=1"))], "no reuse to compare"),
        ([("a", tiny()), ("a", tiny("guidance.scale=7"))], "two configs are named a"),
        ([("a", tiny()), ("b", tiny("teacher.views=21"))], "a and b differ in teacher"),
    ],
)
def test_configs_that_cannot_be_compared(configs: list[tuple[str, Config]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        methods_of(configs)


def test_equal_steps() -> None:
    """What the last method spends, divided by what a step of each costs."""
    assert equal_steps(600, [1.0, 4.0, 4.0]) == [2400, 600, 600]
    assert equal_steps(600, [0.1, 0.11, 0.12]) == [720, 655, 600]
    assert equal_steps(1, [9.0, 1.0]) == [1, 1]


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps take known times; the list grows by one whenever they are timed."""
    calls: list[int] = []

    def fake(configs: list[Config], *_: object) -> list[Cost]:
        calls.append(len(configs))
        draws = [
            c.guidance.renders * (2.5 if c.guidance.resamples == "auto" else c.guidance.resamples) for c in configs
        ]
        return [Cost(*parts) for parts in zip([0.1, 0.15, 0.15, 0.2], draws, strict=False)]

    monkeypatch.setattr(plan, "step_costs", fake)
    return calls


def planned(folder: Path, *overrides: str, prompts: tuple[str, ...] = ("a red cone",), **given: object) -> Plan:
    asked = methods_of([("shapes", tiny(*overrides))])
    options = {"seeds": 1, "clip": "", "equal": "time", "jobs": 1} | given
    return make_plan(asked, list(prompts), folder=folder, **options)  # type: ignore[arg-type]


def test_budgets_are_equal(tmp_path: Path, timed: list[int]) -> None:
    """In time, or in teacher calls; and each method's config is there to be run again."""
    in_time = planned(tmp_path / "time")
    assert [m.steps for m in in_time.methods] == [40, 27, 27, 20]
    in_calls = planned(tmp_path / "calls", "guidance.renders=2", equal="calls")
    assert [m.steps for m in in_calls.methods] == [80, 20, 20, 20]
    assert {m.calls for m in in_calls.methods} == {160}
    written = load(tmp_path / "calls" / "sds.yaml")
    assert (written.training.steps, written.guidance.resamples, written.mesh.formats) == (80, 1, [])
    assert in_calls.methods[0].curve_steps == [8, 16, 24, 32, 40, 48, 56, 64, 72, 80]


def test_resamples_that_choose_themselves(tmp_path: Path, timed: list[int]) -> None:
    """All but plain SDS do; teacher calls are those of a trial run."""
    found = planned(tmp_path, "guidance.resamples=auto", equal="calls")
    assert [m.config.guidance.resamples for m in found.methods] == [1, "auto", "auto", "auto"]
    assert [(m.steps, m.calls) for m in found.methods] == [(50, 50), (20, 50), (20, 50), (20, 50)]


def test_trial_runs_count_what_steps_cost() -> None:
    """Draws exactly, probes included, and time; without touching torch's threads."""
    configs = [tiny("guidance.renders=2"), tiny("guidance.resamples=auto"), tiny("guidance.resamples=1")]
    threads, shares = torch.get_num_threads(), list[float]()
    two, auto, one = step_costs(configs, "a red cone", torch.device("cpu"), 1, shares.append)
    assert (two.calls, one.calls) == (8, 1)
    assert 1 < auto.calls < 20 and min(two.seconds, auto.seconds, one.seconds) > 0
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] < 1
    assert torch.get_num_threads() == threads


def test_plan_is_kept_and_grows(tmp_path: Path, timed: list[int]) -> None:
    """Methods are timed once; more prompts and seeds are added."""
    first = planned(tmp_path)
    again = planned(tmp_path, prompts=("a blue cube", "a red cone"), seeds=3, jobs=2)
    assert timed == [4]
    assert again.methods == first.methods and again.threads == first.threads
    stored = json.loads((tmp_path / "plan.json").read_text())
    assert stored["prompts"] == ["a blue cube", "a red cone"] and stored["seeds"] == 3


@pytest.mark.parametrize(
    "overrides, given, message",
    [
        (["guidance.scale=7"], {}, "sds is another config .guidance.scale: 3.0 and 7.0.*another --output"),
        (["training.steps=30"], {}, "training.steps: 20 and 30"),
        ([], {"equal": "calls"}, "at equal time, not equal calls"),
        ([], {"prompts": ("a blue cube",)}, "the prompt 'a red cone', which the prompt file lacks"),
        ([], {"seeds": 1}, "of 2 seeds; give --seeds 2"),
        (["threads=2"], {}, "with threads=1, not 2"),
    ],
)
def test_plan_of_another_comparison_is_refused(
    tmp_path: Path, timed: list[int], overrides: list[str], given: dict[str, object], message: str
) -> None:
    planned(tmp_path, seeds=2)
    before = (tmp_path / "plan.json").read_bytes()
    with pytest.raises(UserError, match=message):
        planned(tmp_path, *overrides, **({"seeds": 2} | given))
    assert (tmp_path / "plan.json").read_bytes() == before


# ------------------------------------------------------------------------------------------ statistics

TIMES = np.array([2.5, 5.0, 7.5, 10.0])


def curves(psnr: Array, seconds: Array = TIMES, prompts: int = 2, seeds: int = 3, noise: Array | None = None) -> Curves:
    """The same curve (C,) for all, plus noise (P, S)."""
    values = np.broadcast_to(psnr, (prompts, seeds, len(psnr))) + (0 if noise is None else noise[..., None])
    return Curves(seconds, seconds, seconds * 4, values, values / 100)


def test_twice_as_fast_is_a_speedup_of_two() -> None:
    """A method that is where the baseline ends after half of the time."""
    base, fast = curves(np.array([5.0, 10.0, 15.0, 20.0])), curves(np.array([10.0, 20.0, 20.0, 20.0]))
    found = results([base, fast])[1]
    assert (found.speedup.value, found.speedup.low, found.speedup.high) == (2.0, 2.0, 2.0)
    assert found.seconds_needed == 5.0 and found.calls_needed == 20.0
    assert found.quality_difference.value == 0.0 and found.quality_difference.holds_zero


def test_not_reached() -> None:
    """No speed-up, and what it is at most."""
    found = results([curves(np.array([5.0, 10.0, 15.0, 20.0])), curves(np.array([5.0, 9.0, 14.0, 19.0]))])[1]
    assert found.speedup.value is None and found.seconds_needed is None
    assert (found.speedup.low, found.speedup.high) == (0.0, 1.0)
    assert found.quality_difference.value == -1.0 and found.quality_difference.holds_zero is False


def test_identical_methods_do_not_differ() -> None:
    """Exactly: the same seeds are drawn for both."""
    noise = np.random.default_rng(1).normal(size=(2, 3))
    mine = curves(np.array([5.0, 10.0, 15.0, 20.0]), noise=noise)
    found = results([mine, mine])[1]
    assert found.quality_difference.value == 0.0 and found.quality_difference.holds_zero
    assert (found.speedup.value, found.speedup.low, found.speedup.high) == (1.0, 1.0, 1.0)
    assert found.quality.low is not None and found.quality.low < (found.quality.value or 0)


def test_reach_counts_what_was_once_reached() -> None:
    """Linear between points, at the first point if it is above already, infinite if never."""
    axis = np.array([1.0, 2.0, 3.0])
    found = reach(axis, np.array([[1.0, 3.0, 2.0], [2.0, 2.0, 2.0], [0.0, 1.0, 1.0]]), np.array([2.0, 2.0, 2.0]))
    assert found.tolist() == [1.5, 1.0, np.inf]


def test_one_seed_has_no_intervals() -> None:
    found: Result = results([curves(TIMES, seeds=1), curves(TIMES + 1, seeds=1)])[1]
    assert found.quality_difference.value == 1.0
    assert found.quality_difference.low is None and found.quality_difference.holds_zero is None
    assert found.speedup.value == pytest.approx(10 / 9) and found.speedup.high is None


def test_intervals_cover_what_they_promise() -> None:
    """Six prompts of three seeds: nearly 95 % of intervals hold the true mean, though three seeds are few."""
    rng, bootstrap = np.random.default_rng(0), Bootstrap(6, 3)
    found = [bootstrap.mean(rng.normal(size=(6, 3)) + np.arange(6)[:, None] - 2.5) for _ in range(400)]
    assert 0.905 < np.mean([bool(estimate.holds_zero) for estimate in found]) < 0.98


# ------------------------------------------------------------------------------------------ runs


def in_process(_: _Children, command: list[str]) -> tuple[int, str]:
    """What `carv3d generate CONFIG prompt=... seed=... --output RUN` makes, without the seconds of a new process."""
    verb, config_file, prompt, seed, option, path = command[3:]
    assert (verb, option) == ("generate", "--output")
    config = load(config_file, [prompt, seed])
    with Run.create(config, "test", "test", folder=path, device=torch.device("cpu")) as run:
        generate(run, resume=False, console=QUIET)
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
        code, _, _ = carv3d("compare", *TINY, *where, *words)
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
    assert carv3d("compare", *words, *where, "--equal", "calls")[0] == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Quality needs true objects to compare with, or --clip MODEL" in page and "<svg" not in page
    assert page.count('src="data:video/mp4') == 4 and page.count('src="data:image/png') == 4
    kept = Run.open(tmp_path / "out" / "sds" / "a-dragon-seed0")
    assert kept.config.training.steps == 8 and len(kept.checkpoints.paths()) == 2  # no curve, so no more


def test_quality_by_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without true objects, CLIP gives curves, differences and a page; a comparison by something else is refused."""
    teacher, clip = make_pipeline(tmp_path / "teacher", camera=False), make_clip(tmp_path / "clip")
    (tmp_path / "prompts.txt").write_text("a dragon\na fox\n")
    monkeypatch.setattr(_Children, "run", in_process)
    words = [f"teacher.path={teacher}", *(w for w in TINY if not w.startswith("teacher")), "training.steps=2"]
    where = ["--prompts", str(tmp_path / "prompts.txt"), "--seeds", "1", "--output", str(tmp_path / "out")]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code, _, _ = carv3d("compare", *words, *where, "--equal", "calls", "--clip", str(clip), "--json")
    assert code == 0
    for row in json.loads(out.getvalue())["methods"]:
        assert 0 <= row["clip_score"] <= 100 and row["r_precision"] in {i / 20 for i in range(21)}
        assert "psnr" not in row and row["difference"] is not None
    page = (tmp_path / "out" / "report.html").read_text()
    assert "CLIP score" in page and "R-precision" in page and "PSNR" not in page and " dB" not in page
    assert page.count("<svg") == 3 and "true object:" not in page
    assert carv3d("compare", *words, *where, "--equal", "calls")[0] == 2


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
    assert carv3d("compare", *TINY, *words)[0] == 2
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
    code, _, err = carv3d("compare", *TINY, *words, capsys=capsys)
    assert code == 2 and "made on NVIDIA H100, the comparison on cpu" in err and "Traceback" not in err
    shutil.copy(folder / "reuse" / "a-red-cone-seed0" / "environment.json", environment)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("views: 20", "views: 30"))
    code, _, err = carv3d("compare", *TINY, *words, capsys=capsys)
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
