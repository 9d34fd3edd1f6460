"""Speed-ups and differences, with intervals that cover what they promise."""

from __future__ import annotations

import numpy as np
import pytest

from carv3d.comparison.statistics import Array, Bootstrap, Curves, Result, reach, results

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
