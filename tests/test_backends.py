"""Which code draws Gaussians on which machine, and that all of it draws the same."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from carv3d.cameras import Cameras
from carv3d.errors import UserError
from carv3d.kernels import trials
from carv3d.renderers import SplatRenderer
from carv3d.renderers.backend import Backend, choose
from carv3d.renderers.config import RendererConfig
from carv3d.renderers.projection import DILATION, NEAR, project, views
from carv3d.scenes import ImageProjection
from tests.gaussians import cloud
from tests.test_cli import carv3d


def test_gsplat_without_cuda_is_refused_and_auto_is_another() -> None:
    """The device decides; asked for by name, the reason is said."""
    assert SplatRenderer(RendererConfig(backend="auto"), device=torch.device("cpu")).backend in ("torch", "numba")
    with pytest.raises(UserError, match=r"renderer\.backend=gsplat, but gsplat .*: use renderer\.backend=torch"):
        SplatRenderer(RendererConfig(backend="gsplat"), device=torch.device("cpu"))


@pytest.mark.parametrize("package", ["gsplat", "nerfacc"])
def test_the_choice(package: Backend, caplog: pytest.LogCaptureFixture) -> None:
    """What works is taken; what does not is said in one line of the log, or refused if it was asked for by name."""
    device, asked = torch.device("cuda"), []

    def works(device: torch.device) -> None:
        asked.append(device)

    def fails(device: torch.device) -> str:
        return f"{package} does not build: no such flag"

    caplog.set_level(logging.INFO)
    assert choose("torch", {package: works}, device) == "torch" and not asked  # nothing is built for it
    assert choose("auto", {package: works}, device) == choose(package, {package: works}, device) == package
    assert caplog.messages == [] and asked == [device] * 2
    assert choose("auto", {package: fails}, device) == "torch"
    assert caplog.messages == [f"renderer.backend=auto is torch here: {package} does not build: no such flag"]
    with pytest.raises(UserError, match=r"does not build: no such flag: use renderer\.backend=torch"):
        choose(package, {package: fails}, device)
    caplog.clear()
    assert choose("auto", {package: fails}, torch.device("cpu")) == "torch"
    assert caplog.messages == []  # on a CPU nothing is missing


def test_a_run_with_a_backend_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before the folder is made; and each backend draws one kind of scene."""
    for words, reason in (
        (("shapes", "renderer.backend=nerfacc"), "renderer.backend=nerfacc, but nerfacc"),
        (("shapes", "renderer.backend=gsplat"), "auto, torch, nerfacc or numba with scene.type=voxel_grid"),
        (("gaussians", "renderer.backend=nerfacc"), "auto, torch, gsplat or numba with scene.type=gaussians"),
    ):
        run = str(tmp_path / "run")
        code, _, err = carv3d("generate", *words, "a red cone", "device=cpu", "--output", run, capsys=capsys)
        assert code == 2 and reason in " ".join(err.split())
        assert not (tmp_path / "run").exists()


def test_doctor_tries_every_backend() -> None:
    """Torch's time, and of what may take its place that too, or the reason why it does not."""
    found = {trial.name: trial for trial in trials.examine()}
    pairs = {"torch splat": "gsplat", "torch volume": "nerfacc", "torch hash grid": "fused hash grid"}
    for name in ("numba splat", "numba volume", "numba hash grid"):
        numba = found.pop(name)
        assert numba.ok and (torch.cuda.is_available() or numba.found.endswith("of torch's"))
    assert list(found) == [name for pair in pairs.items() for name in pair]
    for name, other in pairs.items():
        assert found[name].ok and " ms (" in found[name].found
        assert found[other].ok and "\n" not in found[other].found
        if not torch.cuda.is_available():
            assert "torch takes its place" in found[other].found and " ms" not in found[other].found


def test_doctor_gives_the_ratio_of_the_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a package works; and one that builds and then draws nothing is a failure."""

    def sleep(seconds: float) -> Callable[[], Callable[[], None]]:
        return lambda: lambda: time.sleep(seconds)

    def fails() -> Callable[[], None]:
        raise RuntimeError("no kernel image\nfor this device")

    device, work = torch.device("cpu"), trials._Work("torch", "sleep", sleep(0.01))
    line = trials._compared(work, [trials._Alternative("quick", "torch", lambda device: None, sleep(0.04))], device)[1]
    assert line.ok and f"torch {torch.__version__} is installed, builds, runs on cpu: " in line.found
    assert 2 < float(line.found.split(", ")[-1].split()[0]) < 8
    line = trials._compared(work, [trials._Alternative("broken", "torch", lambda device: None, fails)], device)[1]
    assert not line.ok and line.found.endswith("builds, fails: no kernel image for this device")


def test_projection_agrees_with_gsplats_own_reference() -> None:
    """gsplat ships its projection in torch too, which its kernels are held against: centres, conics, opacities."""
    pytest.importorskip("gsplat", reason="gsplat is not installed: pip install gsplat")
    from gsplat.cuda._torch_impl import _fully_fused_projection, _quat_scale_to_covar_preci

    scene = cloud(300, degree=0).float()
    cameras = Cameras.look_at_origin(torch.tensor([10.0, 100.0]), torch.tensor([20.0, 60.0]), height=64, width=64)
    ours = project(scene, cameras)
    covariances = _quat_scale_to_covar_preci(scene.rotations, scene.scales, True, False, triu=False)[0]
    options = {"eps2d": DILATION, "near_plane": NEAR, "calc_compensations": True}
    radii, centres, depths, conics, compensation = _fully_fused_projection(
        scene.positions, covariances, views(cameras), cameras.intrinsics, 64, 64, **options
    )
    seen = (radii > 0).all(-1)
    assert seen.float().mean() > 0.5
    torch.testing.assert_close(ours.depths, depths)
    torch.testing.assert_close(ours.centres[seen], centres[seen], atol=1e-4, rtol=0)
    torch.testing.assert_close(ours.conics[seen], conics[seen], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ours.opacities[seen], (scene.opacities * compensation)[seen], atol=1e-6, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available() or find_spec("gsplat") is None, reason="needs CUDA and gsplat")
def test_gsplat_agrees_with_torch() -> None:
    """Pictures, and gradients in direction and size."""
    cameras = Cameras.look_at_origin(torch.tensor([0.0, 70.0]), torch.tensor([10.0, 50.0]), height=64, width=64)
    found = []
    for backend in ("torch", "gsplat"):
        scene = cloud(300, degree=2).float().cuda()
        renderer = SplatRenderer(RendererConfig(backend=backend), device=torch.device("cuda"))  # type: ignore[arg-type]
        render = renderer(scene, cameras.to("cuda"), training=False)
        (render.rgb.square().mean() + render.opacity.mean()).backward()
        projection = render.projection
        assert isinstance(projection, ImageProjection) and projection.centres.grad is not None
        gradients = [p.grad for p in scene.parameters()] + [projection.centres.grad]
        found.append(([render.rgb, render.opacity, render.depth], gradients))
    for one, other in zip(found[0][0], found[1][0], strict=True):
        torch.testing.assert_close(other, one, atol=2e-3, rtol=2e-3)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        assert torch.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.999
        assert ((other - one) * one.sign()).sum().abs() < 0.01 * one.abs().sum()
