"""Which code draws Gaussians on which machine, and that all of it draws the same."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from carv3d import backends
from carv3d.cameras import Cameras
from carv3d.errors import UserError
from carv3d.renderers import SplatRenderer
from carv3d.scenes import Footprints
from tests.gaussians import cloud


def test_gsplat_without_cuda_is_refused_and_auto_is_torch() -> None:
    """The device decides; asked for by name, the reason is said."""
    assert SplatRenderer(backend="auto", device=torch.device("cpu")).backend == "torch"
    with pytest.raises(UserError, match=r"renderer\.backend=gsplat, but gsplat .*: use renderer\.backend=torch"):
        SplatRenderer(backend="gsplat", device=torch.device("cpu"))


def test_doctor_tries_every_backend() -> None:
    """One line each: its time where it runs, the reason where it does not; what is optional is no failure."""
    found = {trial.name: trial for trial in backends.examine()}
    assert list(found) == ["torch splat", "gsplat", "torch volume", "nerfacc", "fused hash grid"]
    assert all(trial.ok and "\n" not in trial.found for trial in found.values())
    for name in ("torch splat", "torch volume"):
        assert " ms (64 x 64" in found[name].found
    assert found["gsplat"].found and (torch.cuda.is_available() or " ms" not in found["gsplat"].found)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available() or find_spec("gsplat") is None, reason="needs CUDA and gsplat")
def test_gsplat_agrees_with_torch() -> None:
    """Pictures, and gradients in direction and size."""
    views = Cameras.look_at_origin(torch.tensor([0.0, 70.0]), torch.tensor([10.0, 50.0]), height=64, width=64)
    found = []
    for backend in ("torch", "gsplat"):
        scene = cloud(300, degree=2).float().cuda()
        renderer = SplatRenderer(backend=backend, device=torch.device("cuda"))  # type: ignore[arg-type]
        render = renderer(scene, views.to("cuda"), training=False)
        (render.rgb.square().mean() + render.opacity.mean()).backward()
        footprints = render.footprints
        assert isinstance(footprints, Footprints) and footprints.centres.grad is not None
        gradients = [p.grad for p in scene.parameters()] + [footprints.centres.grad]
        found.append(([render.rgb, render.opacity, render.depth], gradients))
    for one, other in zip(found[0][0], found[1][0], strict=True):
        torch.testing.assert_close(other, one, atol=2e-3, rtol=2e-3)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        assert torch.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.999
        assert ((other - one) * one.sign()).sum().abs() < 0.01 * one.abs().sum()
