"""How the number of Gaussians changes, and what follows them when it does."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from carv3d.cameras import Cameras
from carv3d.errors import UserError
from carv3d.scenes import Gaussians
from carv3d.scenes.config import DensificationConfig, GaussiansConfig
from carv3d.training.moments import carry_moments
from tests.gaussians import cameras, cloud, look, seeded

RULE = DensificationConfig(
    every=1, begin=0.0, end=1.0, gradient=1.0, split_scale=0.1, prune_opacity=0.0, prune_scale=9.0
)


def noted(count: int = 200, **rule: float) -> Gaussians:
    """A ball of Gaussians of two sizes, with gradients noted for the first half of them."""
    scene = Gaussians(GaussiansConfig(count=count, opacity=0.5, densify=replace(RULE, **rule)), seeded())
    with torch.no_grad():
        scene.log_scales[::2] = math.log(0.12)
        scene.log_scales[1::2] = math.log(0.06)
        scene.gradient_sum[: count // 2] = 1.0
        scene.times_seen.fill_(1.0)
    return scene


def test_densifying_keeps_the_picture() -> None:
    """Cloned and split Gaussians look nearly as before: the scene does not have to be learned again."""
    views = Cameras.look_at_origin(torch.tensor([0.0, 90.0]), torch.tensor([10.0, 30.0]), height=48, width=48)
    scene = noted(400)
    before = look(scene, views)
    changed = scene.after_step(1, 0.5, None, seeded())
    assert changed is not None and len(scene) == 600 == len(changed.parents)
    after = look(scene, views)
    assert (after.rgb - before.rgb).square().mean().sqrt() < 0.03
    assert (after.opacity.mean() - before.opacity.mean()).abs() < 0.02
    # Half of them were large and shrank, half were small and kept their size.
    assert torch.equal(changed.parents[400:], torch.arange(200))
    torch.testing.assert_close(scene.scales[400::2], torch.full((100, 3), 0.12 / 1.6))
    torch.testing.assert_close(scene.scales[401::2], torch.full((100, 3), 0.06))
    # Two twins hide what one hid.
    torch.testing.assert_close(1 - (1 - scene.opacities[401::2]) ** 2, torch.full((100,), 0.5))


def test_densifying_is_drawn_from_the_generator() -> None:
    """The same generator, the same Gaussians; another one, others."""
    found = []
    for seed in (1, 1, 2):
        scene = noted()
        scene.after_step(1, 0.5, None, seeded(seed))
        found.append(scene.positions.detach())
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_moments_follow_their_gaussians() -> None:
    """Adam's moments of every row are those of the row it comes from; a reset parameter has none."""
    scene = noted(reset_every=1, prune_opacity=0.1)
    with torch.no_grad():
        scene.opacity_logits[50:60] = -5.0  # too faint: pruned
    optimizer = torch.optim.Adam(scene.parameter_groups(0.001))
    weights = [torch.rand(p.shape, generator=seeded(i)) for i, p in enumerate(scene.parameters())]
    sum((p * w).sum() for p, w in zip(scene.parameters(), weights, strict=True)).backward()  # type: ignore[union-attr]
    optimizer.step()
    before = [optimizer.state[p]["exp_avg"].clone() for p in scene.parameters()]
    changed = scene.after_step(1, 0.5, None, seeded())
    assert changed is not None
    carry_moments(optimizer, list(scene.parameters()), changed)
    for parameter, old in zip(scene.parameters(), before, strict=True):
        state = optimizer.state[parameter]
        assert state["exp_avg"].shape == state["exp_avg_sq"].shape == parameter.shape
        reset = parameter is scene.opacity_logits
        assert torch.equal(state["exp_avg"], torch.zeros_like(parameter) if reset else old[changed.parents])
    assert not set(range(50, 60)) & set(changed.parents.tolist())
    assert scene.opacities.max() <= 0.2001
    sum(p.square().sum() for p in scene.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()


def test_every_render_of_a_step_counts() -> None:
    """Two views in one step leave the same notes as a step each, of half the loss."""
    notes = []
    for groups in ([slice(0, 2)], [slice(0, 1), slice(1, 2)]):
        scene, views = cloud(), cameras()
        for part in groups:
            render = look(scene, views[part])
            (render.rgb.square().sum() / len(views[part])).backward()
            assert render.projection is not None
            scene.after_step(1, 0.99, render.projection, seeded())
        notes.append((scene.gradient_sum, scene.times_seen))
    torch.testing.assert_close(*[note[0] for note in notes])
    assert torch.equal(*[note[1] for note in notes]) and notes[0][1].max() == 2


def test_the_cap_takes_the_largest_gradients_first() -> None:
    """With room for three, the three whose places the teacher wants to change most are densified."""
    scene = noted(most=203)
    with torch.no_grad():
        scene.gradient_sum[[11, 42, 80]] = torch.tensor([5.0, 7.0, 6.0])
    changed = scene.after_step(1, 0.5, None, seeded())
    assert changed is not None and changed.parents[200:].tolist() == [11, 42, 80]


@pytest.mark.parametrize("threshold", ["prune_opacity", "prune_scale", "bound"])
def test_all_pruned_names_the_threshold(threshold: str) -> None:
    """An empty scene would train on in silence."""
    scene = noted(
        20, **{"prune_opacity": {"prune_opacity": 0.9}, "prune_scale": {"prune_scale": 0.001}}.get(threshold, {})
    )  # type: ignore[arg-type]
    if threshold == "bound":
        with torch.no_grad():
            scene.positions += 5.0
    with pytest.raises(UserError, match=rf"step 1: every one of the \d+ Gaussians is pruned: \d+ .*{threshold}="):
        scene.after_step(1, 0.5, None, seeded())


def test_nothing_changes_outside_its_part_of_the_run() -> None:
    """Before `begin` and after `end`, and between two times, the number stays."""
    scene = noted(begin=0.2, end=0.6, every=2)
    found = [scene.after_step(step, at, None, seeded()) for step, at in ((2, 0.1), (2, 0.7), (3, 0.4))]
    assert found == [None] * 3 and scene.after_step(4, 0.4, None, seeded()) is not None


def test_the_last_step_resets_nothing() -> None:
    """No step is left in which what the teacher wants could come back."""
    for progress, most in ((0.9, 0.2), (1.0, 0.5)):
        scene = noted(every=0, reset_every=4, prune_opacity=0.1)
        scene.after_step(4, progress, None, seeded())
        assert scene.opacities.max().item() == pytest.approx(most)
