"""How Gaussians are drawn: pictures and gradients against formulas, and what must not matter."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from carv3d.cameras import Cameras
from carv3d.renderers import splatting
from carv3d.scenes import Gaussians
from carv3d.scenes.config import GaussiansConfig
from tests.gaussians import cameras, cloud, look, seeded


def brute_force(scene: Gaussians, views: Cameras) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """rgb, opacity and depth by the formulas, one pixel and one Gaussian after the other."""
    numbers = {name: value.detach().numpy() for name, value in scene.named_parameters()}
    shape = (len(views), views.height, views.width)
    rgb, opacity, depths = np.ones((*shape, 3)), np.zeros(shape), np.zeros(shape)
    for r in range(len(views)):
        c2w, intrinsics = views.c2w[r].numpy(), views.intrinsics[r].numpy()
        splats = []
        for i in range(len(scene)):
            w, x, y, z = numbers["rotations"][i] / np.linalg.norm(numbers["rotations"][i])
            cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
            turn = np.eye(3) + 2 * w * cross + 2 * cross @ cross  # Rodrigues
            sigma = turn @ np.diag(np.exp(2 * numbers["log_scales"][i])) @ turn.T
            local = np.diag([1, -1, -1]) @ c2w[:3, :3].T @ (numbers["positions"][i] - c2w[:3, 3])
            fx, fy, (tx, ty, tz) = intrinsics[0, 0], intrinsics[1, 1], local
            jacobian = np.array([[fx / tz, 0, -fx * tx / tz**2], [0, fy / tz, -fy * ty / tz**2]])
            onto = jacobian @ np.diag([1, -1, -1]) @ c2w[:3, :3].T
            sharp = onto @ sigma @ onto.T
            wide = sharp + 0.3 * np.eye(2)
            faint = math.sqrt(np.linalg.det(sharp) / np.linalg.det(wide))
            alpha = faint / (1 + math.exp(-numbers["opacity_logits"][i]))
            centre = np.array([fx * tx / tz + intrinsics[0, 2], fy * ty / tz + intrinsics[1, 2]])
            towards = torch.from_numpy(numbers["positions"][i] - c2w[:3, 3])
            colour = scene.rgb((towards / towards.norm()).expand(len(scene), 3))[i].detach().numpy()
            splats.append((tz, centre, np.linalg.inv(wide), alpha, colour))
        for row in range(views.height):
            for column in range(views.width):
                light, image = 1.0, np.zeros(3)
                for depth, centre, inverse, peak, colour in sorted(splats, key=lambda splat: splat[0]):
                    offset = np.array([column + 0.5, row + 0.5]) - centre
                    alpha = min(0.999, peak * math.exp(-0.5 * offset @ inverse @ offset))
                    if alpha >= 1 / 255:
                        image += light * alpha * colour
                        depths[r, row, column] += light * alpha * depth
                        light *= 1 - alpha
                rgb[r, row, column] = image + light
                opacity[r, row, column] = 1 - light
    return rgb, opacity, depths


@pytest.mark.parametrize("degree", [0, 3])
def test_render_is_the_formula(degree: int) -> None:
    """Colour, opacity and depth are those of a loop over pixels and Gaussians, in several views at once."""
    scene, views = cloud(degree=degree), cameras()
    found = look(scene, views)
    rgb, opacity, along_axis = brute_force(scene, views)
    np.testing.assert_allclose(found.rgb.detach().permute(0, 2, 3, 1), rgb, atol=1e-9)
    np.testing.assert_allclose(found.opacity[:, 0].detach(), opacity, atol=1e-9)
    _, directions = views.rays()
    forward = -views.c2w[:, None, None, :3, 2]
    expected = along_axis / np.maximum(opacity, 1e-9) / (directions * forward).sum(-1).numpy()
    hit = opacity > 1e-3
    np.testing.assert_allclose(found.depth[:, 0].detach().numpy()[hit], expected[hit], rtol=1e-9)
    assert 0.2 < opacity.mean() < 0.95  # there was something to see, and to see past


def test_gradients_match_finite_differences() -> None:
    """The hand-written backward pass, through projection, colours and depth, for every parameter."""
    scene, views = cloud(12, degree=1, seed=3), cameras(size=10)
    weights = torch.rand(2, 5, 10, 13, generator=seeded(7), dtype=torch.float64)

    def loss() -> Tensor:
        found = look(scene, views)
        return (torch.cat([found.rgb, found.opacity, 0.1 * found.depth * (found.opacity > 0.1)], 1) * weights).sum()

    loss().backward()
    for name, parameter in scene.named_parameters():
        assert parameter.grad is not None
        direction = torch.randn(parameter.shape, generator=seeded(5), dtype=torch.float64)
        step, values = 1e-7, []
        with torch.no_grad():
            for sign in (1, -2):
                parameter.add_(direction, alpha=sign * step)
                values.append(loss())
            parameter.add_(direction, alpha=step)
        slope = (values[0] - values[1]) / (2 * step)
        torch.testing.assert_close((parameter.grad * direction).sum(), slope, rtol=1e-5, atol=1e-5, msg=name)


def test_blending_passes_gradcheck() -> None:
    """Every single derivative of the blending, its clamp at full opacity included."""
    scene, views = cloud(6, seed=2), cameras(1, 5)
    found: list[Tensor] = []

    def spy(*arguments: Tensor) -> Tensor:
        found.extend(arguments)
        return original(*arguments)

    original, splatting_module = splatting.composite, __import__("carv3d.renderers.splat", fromlist=["composite"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splatting_module, "composite", spy)
        look(scene, views)
    *inputs, boxes = found
    inputs = [value.detach().requires_grad_() for value in inputs]
    with torch.no_grad():
        inputs[2][0] = 0.9995
    assert torch.autograd.gradcheck(lambda *x: original(*x, boxes), inputs, eps=1e-7, atol=1e-5)


def test_order_and_company_do_not_matter() -> None:
    """The same picture for Gaussians in another order, and for a view alone or among others."""
    scene, views = cloud(), cameras(3)
    before = look(scene, views, normals=True)
    alone = look(scene, views[1:2], normals=True)
    torch.testing.assert_close(alone.rgb, before.rgb[1:2])
    torch.testing.assert_close(alone.normal, before.normal[1:2])  # type: ignore[index]
    shuffled = torch.randperm(len(scene), generator=seeded())
    for parameter in scene.parameters():
        parameter.data = parameter.data[shuffled]
    torch.testing.assert_close(look(scene, views).rgb, before.rgb)


def test_bands_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """With little memory the image comes in bands of rows: the same picture and gradients."""
    found = []
    for candidates in (splatting.CANDIDATES, 500):
        monkeypatch.setattr(splatting, "CANDIDATES", candidates)
        scene = cloud()
        render = look(scene, cameras())
        (render.rgb.square().sum() + render.depth.sum()).backward()
        found.append([render.rgb, render.depth, *[p.grad for p in scene.parameters()]])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_normals_face_the_camera_and_follow_the_surface() -> None:
    """A ball of small opaque Gaussians has radial normals, of length at most the opacity."""
    scene = Gaussians(GaussiansConfig(count=3000, radius=0.5, opacity=0.9), seeded())
    views = Cameras.look_at_origin(torch.tensor([30.0]), torch.tensor([20.0]), height=48, width=48)
    render = look(scene, views, normals=True)
    assert render.normal is not None and (render.normal.norm(dim=1) <= render.opacity[:, 0] + 1e-5).all()
    origins, directions = views.rays()
    where = torch.nn.functional.normalize((origins + render.depth[:, 0, ..., None] * directions), dim=-1)
    facing = (where.permute(0, 3, 1, 2) * render.normal).sum(1)[render.opacity[:, 0] > 0.95]
    assert facing.mean() > 0.9


def test_nothing_and_the_degenerate_are_drawn_without_nan() -> None:
    """No Gaussian in view, one of no size, one without a rotation, one behind the camera: finite all through."""
    scene, views = Gaussians(GaussiansConfig(count=4), seeded()), cameras(1)
    views = replace(views, c2w=views.c2w.float(), intrinsics=views.intrinsics.float())
    with torch.no_grad():
        scene.log_scales[0] = -60.0
        scene.rotations[1] = 0.0
        scene.positions[2] = 2 * views.c2w[0, :3, 3]
        scene.log_scales[3, 1:] = -60.0
    render = look(scene, views, normals=True)
    (render.rgb.sum() + render.depth.sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in scene.parameters())
    with torch.no_grad():
        scene.positions.fill_(50.0)
        empty = look(scene, views, normals=True)
    assert (empty.rgb == 1).all() and (empty.opacity == 0).all() and empty.normal is not None
