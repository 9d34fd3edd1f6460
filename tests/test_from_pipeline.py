"""A teacher from a diffusers pipeline that is in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

import carv3d
from carv3d.cameras import Cameras
from carv3d.errors import UserError
from carv3d.teachers import DiffusersTeacher
from tests.estimates import sds
from tests.pipelines import MAKERS, make_pipeline

CLASSES = {
    "sd": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "sd3": "StableDiffusion3Pipeline",
    "deepfloyd": "IFPipeline",
}


def loaded(kind: str, folder: Path) -> Any:
    options = {"safety_checker": None} if kind == "sd" else {}
    return getattr(diffusers, CLASSES[kind]).from_pretrained(folder, **options)


@pytest.mark.parametrize("kind", list(MAKERS))
def test_it_is_the_teacher_of_the_pipelines_folder(kind: str, tmp_path: Path) -> None:
    """Latents, pictures, conditions and residuals are those of the same pipeline loaded by carv3d."""
    folder = MAKERS[kind](tmp_path / kind)
    mine, theirs = carv3d.from_pipeline(loaded(kind, folder)), DiffusersTeacher(folder, cache_text=False)
    g = torch.Generator().manual_seed(0)
    rgb = torch.rand(2, 3, mine.image_size, mine.image_size, generator=g)
    z = mine.encode(rgb)
    torch.testing.assert_close(z, theirs.encode(rgb))
    torch.testing.assert_close(mine.decode(z), theirs.decode(z))
    azimuth, elevation = torch.tensor([0.0, 120.0]), torch.tensor([10.0, 30.0])
    condition = mine.text_condition("a view", azimuth=azimuth, elevation=elevation, negative="b")
    other = theirs.condition("a view", Cameras.look_at_origin(azimuth, elevation), "b")
    t, eps = torch.tensor([100, 800]), torch.randn(z.shape, generator=g)
    torch.testing.assert_close(
        sds(mine, z, t, eps, condition, 3.0), sds(theirs, z, t, eps, other, 3.0), rtol=1e-3, atol=1e-5
    )


def test_networks_are_shared(tmp_path: Path) -> None:
    """What is done to the pipeline afterwards, such as LoRA weights, is in the gradient."""
    pipe = loaded("sd", make_pipeline(tmp_path / "sd"))
    teacher = carv3d.from_pipeline(pipe)
    assert teacher.family.network is pipe.unet
    z = torch.randn(1, *teacher.latent_shape, generator=torch.Generator().manual_seed(0), requires_grad=True)
    carv, condition = carv3d.Carv(teacher, resamples=2), teacher.text_condition("a")
    before = carv.estimate(z, condition, step=0).fbar
    with torch.no_grad():
        for p in pipe.unet.parameters():
            p.mul_(1.1)
    assert not torch.allclose(carv.estimate(z, condition, step=0).fbar, before)
    loss, _ = carv(z, condition)
    loss.backward()
    assert z.grad is not None and all(p.grad is None for p in pipe.unet.parameters())


def test_conditions_of_texts_and_angles(tmp_path: Path) -> None:
    """One prompt for all angles or one each; texts alone stand as they are; what does not fit is refused."""
    teacher = carv3d.from_pipeline(loaded("sd", make_pipeline(tmp_path / "sd", camera=True)))
    front, back = teacher.text_condition("a", azimuth=torch.tensor([0.0, 180.0]))[torch.tensor([0])], None
    assert len(teacher.text_condition(["a", "b"])) == 2
    alone = teacher.text_condition("a")
    assert alone.camera is None or not alone.camera.any()
    two = teacher.text_condition(["a", "b"], azimuth=torch.tensor([0.0, 180.0]), elevation=torch.tensor([0.0, 0.0]))
    torch.testing.assert_close(two[torch.tensor([0])].mixed(two[torch.tensor([0])].cond), front.mixed(front.cond))
    back = teacher.condition("b", Cameras.look_at_origin(torch.tensor([180.0]), torch.tensor([0.0])))
    row = two[torch.tensor([1])]
    torch.testing.assert_close(row.mixed(row.cond), back.mixed(back.cond))
    torch.testing.assert_close(row.camera, back.camera)
    for bad in ({"azimuth": torch.zeros(3)}, {"elevation": torch.zeros(2)}):
        with pytest.raises(ValueError, match=r"do not fit|without azimuth"):
            teacher.text_condition(["a", "b"], **bad)  # type: ignore[arg-type]


def test_what_cannot_be_wrapped_is_one_line(tmp_path: Path) -> None:
    """Another kind of pipeline, parts on different devices, a part that is missing."""
    pipe = loaded("sd", make_pipeline(tmp_path / "sd"))
    with pytest.raises(UserError, match="a dict is no pipeline that is known; known are StableDiffusionPipeline"):
        carv3d.from_pipeline({})
    vae, pipe.vae = pipe.vae, None
    with pytest.raises(UserError, match="the StableDiffusionPipeline has no vae"):
        carv3d.from_pipeline(pipe)
    pipe.vae = vae.to("meta")
    with pytest.raises(UserError, match=r"on different devices \(vae on meta.*pipe\.to\(device\)"):
        carv3d.from_pipeline(pipe)


def test_a_subclass_counts_as_its_class(tmp_path: Path) -> None:
    """Pipelines are subclassed to add to them."""

    class Mine(diffusers.StableDiffusionPipeline):  # type: ignore[misc]
        """The same, with another name."""

    pipe = Mine.from_pretrained(make_pipeline(tmp_path / "sd"), safety_checker=None)
    assert carv3d.from_pipeline(pipe).latent_shape == (4, 8, 8)
