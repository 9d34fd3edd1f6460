"""K that chooses itself: it finds the best, stays unbiased, and goes on from a checkpoint."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from carv3d.allocation import EVERY, FEWEST, LEVELS, Allocation
from carv3d.config import find_config, load
from carv3d.training import Trainer, check_logs
from tests.test_cli import QUICK


def settled(ratio: float, between: float, within: float, probes: int = 200) -> Allocation:
    """After probes of gradients whose parts are known: `c + e / sqrt(K)`, 400 parameters."""
    allocation, rng = Allocation(ratio), torch.Generator().manual_seed(0)
    theta = torch.zeros(1, 400, requires_grad=True)
    for _ in range(probes):
        view = (between / 400) ** 0.5 * torch.randn(1, 400, generator=rng)
        K = allocation.resamples
        fbar = [view + (within / K / 400) ** 0.5 * torch.randn(1, 400, generator=rng) for _ in range(2)]
        allocation.probe(theta * 1.0, fbar[0], fbar[1], [theta])
    return allocation


@pytest.mark.parametrize("ratio, between, within", [(4, 1, 24), (5, 1, 0.8), (1, 1, 1), (20, 1, 20), (4, 0.01, 30)])
def test_settles_within_a_tenth_of_the_best(ratio: float, between: float, within: float) -> None:
    """Of the ECM of the best level."""
    found = settled(ratio, between, within)
    assert found.between == pytest.approx(between, rel=0.3, abs=0.03 * within)
    assert found.within == pytest.approx(within, rel=0.2)

    def waste(K: int) -> float:
        return (between + within / K) * (ratio + K)

    best = min(LEVELS, key=waste)
    assert waste(found.resamples) < 1.1 * waste(best)


def test_moves_slowly() -> None:
    """Not before enough probes, and one level at a time."""
    allocation = settled(20, 1, 1000, probes=FEWEST)
    assert allocation.resamples == 4
    levels = [settled(20, 1, 1000, probes=FEWEST + more).resamples for more in (1, 2, 3)]
    assert levels == [6, 8, 12]


def trainer(**more: Any) -> Trainer:
    words = [f"{key}={value}" for key, value in more.items()]
    few = ["training.steps=200", "guidance.resamples=auto"]
    return Trainer(load(find_config("shapes"), ["prompt=a red cone", *QUICK, *few, *words]))


def test_a_run_with_it_goes_on_with_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """K, cost ratio, means and the last probe are in the state; K is in the figures."""
    monkeypatch.setattr(Trainer, "_cost_ratio", lambda self: 6.0)
    whole, first = trainer(), trainer()
    steps = (FEWEST + 3) * EVERY
    figures = check_logs([whole.step() for _ in range(steps)])
    assert {row["resamples"] for row in figures} != {4.0}  # it has moved
    for _ in range(steps // 2):
        first.step()
    scene, state = first.state()
    monkeypatch.setattr(Trainer, "_cost_ratio", lambda self: pytest.fail("measured twice"))
    second = trainer()
    second.load_state(first.step_count, scene, {key: value.clone() for key, value in state.items()})
    for _ in range(steps - steps // 2):
        second.step()
    for a, b in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_cost_ratio_is_measured_without_touching_the_run() -> None:
    """Draws and gradients of the run are as if it had not been."""
    one = trainer()
    before = one.rng.get_state()
    ratio = one._cost_ratio()
    assert 0 < ratio < 1000
    assert torch.equal(one.rng.get_state(), before)
    assert all(p.grad is None for p in one.parameters())
