"""What is compared: methods, budgets, and what steps cost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from carv3d.comparison import plan
from carv3d.comparison.calibration import step_costs
from carv3d.comparison.plan import equal_steps, methods_of
from carv3d.config import Config, load
from carv3d.errors import UserError
from tests.comparisons import known_times, planned, tiny

timed = pytest.fixture(known_times)


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
    assert methods["paper"].guidance.coupling == "independent" and methods["carv"].guidance.coupling == "antithetic"
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
    assert 5 < auto.calls < 9 and min(two.seconds, auto.seconds, one.seconds) > 0
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
