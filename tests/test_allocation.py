"""K that chooses itself: it finds the best, stays unbiased, and goes on from a checkpoint."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from carv3d.allocation import EVERY, FEWEST, LEVELS, Allocation
from carv3d.config import find_config, load
from carv3d.training import Trainer, check_logs
from tests.test_cli import QUICK


def variance(within: float, K: int, rho: float = 0.0) -> float:
    """V(K) of antithetic pairs whose draws have the correlation rho; an odd K's last is alone. 0: independent."""
    pairs, alone = divmod(K, 2)
    return within * (pairs * 2 * (1 + rho) + alone) / K**2


def settled(
    ratio: float, between: float, within: float, rho: float = 0.0, probes: int = 200
) -> tuple[Allocation, list[int]]:
    """After probes of gradients whose parts are known: `c + sqrt(V(K)) e`, 400 parameters; and the K of each."""
    allocation, rng = Allocation(ratio), torch.Generator().manual_seed(0)
    theta = torch.zeros(1, 400, requires_grad=True)
    ks = []
    for step in range(probes):
        view = (between / 400) ** 0.5 * torch.randn(1, 400, generator=rng)
        K = allocation.resamples
        ks.append(K)
        fbar = [view + (variance(within, K, rho) / 400) ** 0.5 * torch.randn(1, 400, generator=rng) for _ in range(2)]
        allocation.probe(step, theta * 1.0, fbar[0], fbar[1], [theta])
    return allocation, ks


@pytest.mark.parametrize("rho", [0.0, -0.6, -0.9, -0.95])
@pytest.mark.parametrize("ratio, between, within", [(4, 1, 24), (5, 1, 0.8), (1, 1, 3), (2, 1, 3), (20, 1, 20)])
def test_settles_within_a_tenth_of_the_best(ratio: float, between: float, within: float, rho: float) -> None:
    """Of the ECM of the best level, over the second half of its probes; with independent and with coupled noise."""
    found, ks = settled(ratio, between, within, rho)
    assert found.between == pytest.approx(between, rel=0.3, abs=0.03 * within)

    def waste(K: int) -> float:
        return (between + variance(within, K, rho)) * (ratio + K)

    later = ks[len(ks) // 2 :]
    assert sum(map(waste, later)) / len(later) < 1.1 * min(map(waste, LEVELS))


def test_moves_slowly() -> None:
    """Not before enough probes, and one level at a time."""
    _, ks = settled(20, 1, 1000, probes=FEWEST + 5)
    assert ks == [4] * (FEWEST + 1) + [6, 8, 12, 16]


def test_probes_come_at_no_fixed_stride() -> None:
    """Cameras of a low-discrepancy sequence at a fixed stride are a fixed angle apart."""
    allocation, theta, steps = Allocation(4.0), torch.zeros(1, 4, requires_grad=True), []
    for step in range(2000):
        if allocation.due(step):
            steps.append(step)
            allocation.probe(step, theta * 1.0, torch.randn(1, 4), torch.randn(1, 4), [theta])
    strides = torch.tensor(steps).diff()
    assert steps[0] == 0 and strides.min() >= EVERY[0] and strides.max() <= EVERY[1]
    assert len(set(strides.tolist())) > 8


def trainer(**more: Any) -> Trainer:
    words = [f"{key}={value}" for key, value in more.items()]
    few = ["training.steps=300", "guidance.resamples=auto"]
    return Trainer(load(find_config("shapes"), ["prompt=a red cone", *QUICK, *few, *words]))


def test_a_run_with_it_goes_on_with_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """K, cost ratio, means and the last probe are in the state; K is in the figures."""
    monkeypatch.setattr(Trainer, "_cost_ratio", lambda self: 6.0)
    whole, first = trainer(), trainer()
    steps = (FEWEST + 3) * EVERY[1]
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
    assert 0 < ratio <= 1001
    assert torch.equal(one.rng.get_state(), before)
    assert all(p.grad is None for p in one.parameters())


def test_automatic_resamples_live_with_a_changing_number() -> None:
    """Probes of scenes of different sizes are not compared; the next two of one size are."""
    allocation = Allocation(cost_ratio=4.0)
    for step, count in enumerate((5, 7, 7)):
        parameter = torch.ones(count, requires_grad=True)
        draws = torch.randn(2, 1, 3, generator=torch.Generator().manual_seed(step))
        allocation.probe(step, parameter.sum() * torch.ones(1, 3), draws[0], draws[1], [parameter])
        assert (allocation.between != 0) == (step == 2)
