"""K that chooses itself: it finds the best, stays unbiased, and goes on from a checkpoint."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from carv3d.cameras import Cameras
from carv3d.config import find_config, load
from carv3d.training import automatic_resamples
from carv3d.training.automatic_resamples import FEWEST, LEVELS, MOST, NEEDED, START, Allocation
from carv3d.training.engine import fetch
from carv3d.training.trainer import Trainer
from tests.test_cli import QUICK

SIZE = 400  # parameters


def variance(within: float, K: int, rho: float = 0.0) -> float:
    """V(K) of antithetic pairs whose draws have the correlation rho; an odd K's last is alone. 0: independent."""
    pairs, alone = divmod(K, 2)
    return within * (pairs * 2 * (1 + rho) + alone) / K**2


class Scene:
    """Gradients whose parts are known: a view's mean with variance A, and draws around it with V(K)."""

    def __init__(self, between: float, within: float, rho: float = 0.0) -> None:
        self.between, self.within, self.rho = between, within, rho
        self._rng = torch.Generator().manual_seed(0)

    def probe(self, allocation: Allocation, step: int, scale: float = 1.0) -> None:
        """The allocation's next look at it, all gradients times `scale`."""
        views = self._normal(2, self.between)
        draws = self._normal(3, variance(self.within, allocation.resamples, self.rho))
        allocation.probe(step, scale * (views[0] + draws[:2]), scale * (views[1] + draws[2]))

    def _normal(self, count: int, variance: float) -> torch.Tensor:
        return (variance / SIZE) ** 0.5 * torch.randn(count, SIZE, generator=self._rng)


@pytest.mark.parametrize("rho", [0.0, -0.6, -0.9, -0.95])
@pytest.mark.parametrize("ratio, between, within", [(4, 1, 24), (5, 1, 0.8), (1, 1, 3), (2, 1, 3), (20, 1, 20)])
@pytest.mark.parametrize("shrink", [1.0, 0.9])
def test_settles_within_a_tenth_of_the_best(
    ratio: float, between: float, within: float, rho: float, shrink: float
) -> None:
    """Of the ECM of the best level, over the second half of its probes; with independent and with coupled noise, of
    gradients that stay as large as they are or shrink at every probe."""
    allocation, scene, ks = Allocation(ratio), Scene(between, within, rho), []
    for step in range(200):
        ks.append(allocation.resamples)
        scene.probe(allocation, step, shrink**step)
    now = shrink ** (2 * 199)
    assert allocation.between == pytest.approx(between * now, rel=0.35, abs=0.04 * within * now)
    for K in {1, 2} & set(allocation.within):  # pairs and a draw alone are not taken for each other
        if allocation.probes[K] > 3:
            assert allocation.within[K] == pytest.approx(K * variance(within, K, rho) * now, rel=0.5)

    def waste(K: int) -> float:
        return (between + variance(within, K, rho)) * (ratio + K)

    later = ks[len(ks) // 2 :]
    assert sum(map(waste, later)) / len(later) < 1.1 * min(map(waste, LEVELS))


def test_both_parts_are_unbiased() -> None:
    """Over many first probes, within four standard errors."""
    scene, found = Scene(2.0, 12.0), []
    for _ in range(400):
        allocation = Allocation(1.0)
        scene.probe(allocation, 0)
        found.append([allocation.between, allocation.within[START]])
    samples = torch.tensor(found)
    z = (samples.mean(0) - torch.tensor([2.0, 12.0])) / (samples.std(0) / len(found) ** 0.5)
    assert z.abs().max() < 4


def test_a_move_is_no_growth() -> None:
    """Fifteen times the variance, since a draw has lost its pair, does not make the views differ more."""
    allocation, scene, ks, between = Allocation(1), Scene(1, 24, -0.95), [], []
    for step in range(30):
        ks.append(allocation.resamples)
        scene.probe(allocation, step)
        between.append(allocation.between)
    assert 1 in ks and max(between) < 2


def test_moves_slowly() -> None:
    """Not before enough probes, and one level at a time."""
    allocation, scene, ks = Allocation(20), Scene(1, 1000), []
    for step in range(FEWEST + 5):
        ks.append(allocation.resamples)
        scene.probe(allocation, step)
    assert ks == [START] * FEWEST + [6, 8, 12, 16, 24]


def test_probes_become_rare() -> None:
    """Often at first, a quarter of the steps done apart later: a hundredth of a long run's steps."""
    allocation, scene, steps = Allocation(4.0), Scene(1, 1), []
    for step in range(10_000):
        if allocation.due(step):
            steps.append(step)
            scene.probe(allocation, step)
    strides = torch.tensor(steps).diff()
    assert steps[:8] == [0, 3, 6, 9, 12, 15, 18, 22] and strides.max() == MOST
    assert len(steps) < 130 and sum(step <= 670 for step in steps) < 25


def test_looks_at_other_views_of_the_same_scene(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other gradient is of another camera, and the run's own gradient is what it would be without a probe."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    azimuths: list[float] = []
    real = Trainer.look

    def look(self: Trainer, cameras: Cameras, rng: torch.Generator) -> Any:
        azimuths.append(float(cameras.azimuth))
        return real(self, cameras, rng)

    monkeypatch.setattr(Trainer, "look", look)
    monkeypatch.setattr(automatic_resamples, "cost_ratio", lambda trainer: 6.0)
    monkeypatch.setattr(Allocation, "probe", lambda self, step, pair, other: seen.append((pair, other)))
    probed, plain = trainer(), trainer(**{"guidance.resamples": 4})
    probed.step()
    plain.step()
    ((pair, other),) = seen
    assert pair.shape == (2, other.numel())
    mine = torch.cat([p.grad.flatten() for p in probed.parameters() if p.grad is not None])
    assert torch.equal(mine, torch.cat([p.grad.flatten() for p in plain.parameters() if p.grad is not None]))
    first, elsewhere, again = azimuths  # of the probed step, its probe, and the plain step
    assert first == again and abs(first - elsewhere) > 1
    similar = torch.nn.functional.cosine_similarity
    assert similar(pair[0], pair[1], 0) > similar(pair[0], other, 0)


def trainer(**more: Any) -> Trainer:
    words = [f"{key}={value}" for key, value in more.items()]
    few = ["training.steps=300", "guidance.resamples=auto"]
    return Trainer(load(find_config("shapes"), ["prompt=a red cone", *QUICK, *few, *words]))


def test_a_run_with_it_goes_on_with_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """K, cost ratio and means are in the state; K is in the figures."""
    monkeypatch.setattr(automatic_resamples, "cost_ratio", lambda trainer: 6.0)
    whole, first = trainer(), trainer()
    steps = 46
    figures = fetch([whole.step() for _ in range(steps)])
    assert {row["resamples"] for row in figures} != {START}  # it has moved
    for _ in range(steps // 2):
        first.step()
    scene, state = first.state()
    monkeypatch.setattr(automatic_resamples, "cost_ratio", lambda trainer: pytest.fail("measured twice"))
    second = trainer()
    second.load_state(first.step_count, scene, {key: value.clone() for key, value in state.items()})
    for _ in range(steps - steps // 2):
        second.step()
    for a, b in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_run_too_short_to_choose(caplog: pytest.LogCaptureFixture) -> None:
    """Keeps the K that it starts with, and says so once; a longer one says nothing."""
    trainer(**{"training.steps": NEEDED + 1})
    assert not caplog.records
    trainer(**{"training.steps": NEEDED})
    assert [r.getMessage() for r in caplog.records] == [
        f"guidance.resamples=auto keeps K = {START}: it chooses after {NEEDED} steps, and the run has {NEEDED}"
    ]


def test_cost_ratio_is_measured_without_touching_the_run() -> None:
    """Draws and gradients of the run are as if it had not been."""
    one = trainer()
    before = one.rng.get_state()
    ratio = automatic_resamples.cost_ratio(one)
    assert 0 < ratio <= 1001
    assert torch.equal(one.rng.get_state(), before)
    assert all(p.grad is None for p in one.parameters())
