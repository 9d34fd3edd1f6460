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
from carv3d.prompts.views import ViewPrompts
from carv3d.teachers import DiffusersTeacher
from carv3d.teachers.config import DiffusersTeacherConfig
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
    mine, theirs = (
        carv3d.from_pipeline(loaded(kind, folder)),
        DiffusersTeacher(DiffusersTeacherConfig(path=str(folder), cache_text=False)),
    )
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


@pytest.mark.parametrize("kind", list(MAKERS))
def test_parts_may_have_number_formats_of_their_own(kind: str, tmp_path: Path) -> None:
    """A denoiser in bfloat16 beside a VAE and text encoders in float32, as SDXL's VAE needs it."""
    pipe = loaded(kind, MAKERS[kind](tmp_path / kind))
    getattr(pipe, "transformer" if kind == "sd3" else "unet").to(torch.bfloat16)
    teacher = carv3d.from_pipeline(pipe)
    z = teacher.encode(torch.rand(1, 3, teacher.image_size, teacher.image_size))
    assert z.dtype == torch.float32 and teacher.decode(z).isfinite().all()
    found = carv3d.Carv(teacher, resamples=2).estimate(z, teacher.text_condition("a"), step=0)
    assert found.fbar.isfinite().all()


def test_one_prompt_from_many_sides_is_encoded_once(tmp_path: Path) -> None:
    teacher = carv3d.from_pipeline(loaded("sd", make_pipeline(tmp_path / "sd")))
    condition = teacher.text_condition("a view", azimuth=torch.linspace(-170, 170, 12), elevation=torch.zeros(12))
    assert len(condition) == 12 and len(condition.embeddings["text"]) == 5  # four views, and the unconditional text


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


@pytest.mark.parametrize("kind", list(MAKERS))
def test_embeddings_of_ones_own(kind: str, tmp_path: Path) -> None:
    """Words that were encoded elsewhere, negatives and their weights among them, say the same as texts; a pipeline
    without text encoders does for them."""
    pipe = loaded(kind, MAKERS[kind](tmp_path / kind))
    teacher = carv3d.from_pipeline(pipe, views=ViewPrompts(perp_neg=True))
    azimuth, elevation = torch.tensor([20.0, 120.0]), torch.tensor([10.0, 30.0])
    texts = teacher.text_condition("a view", azimuth=azimuth, elevation=elevation, negative="b")
    parts = [getattr(pipe, name, None) for name in ("text_encoder", "text_encoder_2", "text_encoder_3")]
    for name in [part for part in teacher.family.parts if part.startswith(("text_encoder", "tokenizer"))]:
        setattr(pipe, name, None)
    assert any(parts)
    bare = carv3d.from_pipeline(pipe)
    negatives = [texts.mixed(shares) for shares in texts.negatives.unbind(1)]
    stacked = {name: torch.stack([one[name] for one in negatives], 1) for name in negatives[0]}
    own = bare.embeddings_condition(texts.mixed(texts.cond), texts.mixed(texts.uncond), stacked, texts.weights)
    g = torch.Generator().manual_seed(0)
    z_t, t, rows = (
        torch.randn(3, *bare.latent_shape, generator=g),
        torch.tensor([100, 500, 800]),
        torch.tensor([0, 1, 1]),
    )
    branches = ("uncond", "cond", "negatives")
    ours, theirs = (m.predict(z_t, t, c[rows], branches) for m, c in ((bare, own), (teacher, texts)))
    for branch in branches:
        torch.testing.assert_close(ours[branch], theirs[branch], rtol=1e-3, atol=1e-5)
    plain = bare.embeddings_condition(texts.mixed(texts.cond), texts.mixed(texts.uncond))
    assert plain.negatives.shape[:2] == (2, 0) and torch.equal(
        plain.mixed(plain.cond)["text"], own.mixed(own.cond)["text"]
    )
    with pytest.raises(UserError, match=r"has no (text_encoder|tokenizer)\w*: load it whole, or make conditions"):
        bare.text_condition("a view")
    with pytest.raises(ValueError, match=r"the words of a .* are text"):
        bare.embeddings_condition({"words": z_t}, {"words": z_t})
    with pytest.raises(ValueError, match="do not fit each other"):
        bare.embeddings_condition(texts.mixed(texts.cond), texts.mixed(texts.uncond), stacked, texts.weights[:1])


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
