"""Every family of pipelines: what its network is told, what its residual is, and a whole run on a tiny one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from carv3d.cameras import Cameras
from carv3d.errors import UserError
from carv3d.guidance import Branch, PerpNeg, perpendicular
from carv3d.loss import Carv
from carv3d.prompts.views import ViewPrompts, with_views
from carv3d.sampling import sds_weight
from carv3d.teachers import DiffusersTeacher
from carv3d.teachers.config import DiffusersTeacherConfig
from carv3d.teachers.ddim import ddim_sample
from carv3d.teachers.families import Loader, family_of
from tests.estimates import sds
from tests.pipelines import MAKERS, make_pipeline, make_sd3, make_sdxl
from tests.test_cli import carv3d

CAMERAS = Cameras.look_at_origin(torch.tensor([0.0, 90.0, 180.0, 50.0]), torch.tensor([0.0, 0.0, 0.0, 75.0]))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {name: make(root / name) for name, make in MAKERS.items()}


@pytest.fixture(params=MAKERS)
def folder(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Path:
    return folders[request.param]


def draws(teacher: DiffusersTeacher, count: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    z = torch.randn(count, *teacher.latent_shape, generator=g)
    return z, torch.tensor([20, 300, 700, 980])[:count], torch.randn(z.shape, generator=g)


def told(folder: Path, text: str, negative: str) -> dict[str, tuple[Tensor, Tensor]]:
    """What diffusers' own pipeline tells its network of a prompt and of a negative one, by our names."""
    index = json.loads((folder / "model_index.json").read_text())
    absent = {"text_encoder_3": None, "tokenizer_3": None} if index.get("text_encoder_3") == [None, None] else {}
    pipeline: Any = DiffusionPipeline.from_pretrained(folder, **absent)
    match index["_class_name"]:
        case "StableDiffusionXLPipeline":
            found = pipeline.encode_prompt(text, device="cpu", negative_prompt=negative or None)
            return {"text": found[:2], "pooled": found[2:]}
        case "StableDiffusion3Pipeline":
            found = pipeline.encode_prompt(text, None, None, device="cpu", negative_prompt=negative)
            return {"text": found[:2], "pooled": found[2:]}
    options = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": True}
    return {"text": pipeline.encode_prompt(text, negative_prompt=negative, **options)[:2]}


@torch.no_grad()
def test_words_are_those_of_diffusers_own_pipeline(folder: Path) -> None:
    """Prompt and empty negative, every tensor of them."""
    teacher = DiffusersTeacher(DiffusersTeacherConfig(path=str(folder), cache_text=False))
    words = teacher.family.embed(["a, front view", ""])
    theirs = told(folder, "a, front view", "")
    assert words.keys() == theirs.keys()
    for name, pair in theirs.items():
        for row, expected in enumerate(pair):
            torch.testing.assert_close(words[name][row : row + 1], expected, rtol=1e-5, atol=1e-6)


def test_residual_and_weight_by_an_independent_formula(folder: Path) -> None:
    """In float64 from the raw prediction, by way of the clean picture that it implies (not of eps_hat)."""
    teacher = DiffusersTeacher(DiffusersTeacherConfig(path=str(folder), cache_text=False))
    z, t, eps = draws(teacher)
    condition = teacher.condition("a", CAMERAS)
    found = sds(teacher, z, t, eps, condition, 1.0).double()
    config = teacher.family.loader.config("scheduler")
    if teacher.family.prediction == "flow":  # x_sigma = (1 - sigma) x + sigma eps, v = eps - x
        s = (t.double() + 1) / 1000
        sigma = config["shift"] * s / (1 + (config["shift"] - 1) * s)
        alpha = 1 - sigma
    else:
        betas = {
            "scaled_linear": torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2,
            "squaredcos_cap_v2": None,
        }[config["beta_schedule"]]
        if betas is None:
            f = ((torch.arange(1001, dtype=torch.float64) / 1000 + 0.008) / 1.008 * torch.pi / 2).cos() ** 2
            betas = (1 - f[1:] / f[:-1]).clamp_max(0.999)
        a = (1 - betas).cumprod(0)[t]
        alpha, sigma = a.sqrt(), (1 - a).sqrt()
    alpha, sigma = (x.view(-1, 1, 1, 1) for x in (alpha, sigma))
    z_t = alpha * z + sigma * eps
    with torch.no_grad():
        raw = teacher.family.predict(z_t.float(), t, condition.mixed(condition.cond), None).double()
    clean = z_t - sigma * raw if teacher.family.prediction == "flow" else (z_t - sigma * raw) / alpha
    expected = alpha * (z - clean) / sigma  # eps_hat - eps, since both go with the same z_t
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-3)
    w = sds_weight(teacher.schedule.alpha, teacher.schedule.sigma, "sds")
    torch.testing.assert_close(w[t], sigma.flatten() ** 2, rtol=1e-9, atol=0)
    if teacher.family.prediction == "flow":
        w = sds_weight(teacher.schedule.alpha, teacher.schedule.sigma, "velocity")
        velocity = w[t].view(-1, 1, 1, 1) * found
        torch.testing.assert_close(velocity, raw - (eps - z).double(), rtol=1e-3, atol=5e-3)
        assert torch.isfinite(w).all() and w[-1] == 0


def test_scale_one_is_the_conditional_prediction(folder: Path) -> None:
    """Exactly; other scales lie on the line through it and the unconditional one."""
    teacher = DiffusersTeacher(DiffusersTeacherConfig(path=str(folder), cache_text=False))
    z, t, eps = draws(teacher)
    condition = teacher.condition("a", CAMERAS)
    zero, one, five = (sds(teacher, z, t, eps, condition, scale) for scale in (0.0, 1.0, 5.0))
    alpha, sigma = teacher.schedule.at(t, z)
    with torch.no_grad():
        own = teacher.family.eps_hat(alpha * z + sigma * eps, t, condition.mixed(condition.cond), None) - eps
    assert torch.equal(one, own) and not torch.allclose(zero, one)
    torch.testing.assert_close(five, zero + 5 * (one - zero), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("perp", [False, True])
def test_rows_and_chunks_do_not_mix(folder: Path, perp: bool) -> None:
    """A draw's residual does not depend on what else is asked in the same call."""
    teacher = DiffusersTeacher(
        DiffusersTeacherConfig(path=str(folder), cache_text=False), views=ViewPrompts(perp_neg=perp)
    )
    z = torch.randn(4, *teacher.latent_shape, generator=torch.Generator().manual_seed(0))
    condition = teacher.condition("a", CAMERAS)
    whole, pieces = (Carv(teacher, resamples=3, chunk=chunk) for chunk in (0, 5))
    one, two = (c.estimate(z, condition, torch.Generator().manual_seed(1)).fbar for c in (whole, pieces))
    torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)


def test_out_of_memory_halves_the_chunk_and_stays_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same estimate; the next one starts with what fitted."""
    teacher = DiffusersTeacher(DiffusersTeacherConfig(path=str(folder), cache_text=False))
    z = torch.randn(2, *teacher.latent_shape, generator=torch.Generator().manual_seed(0))
    condition, calls = teacher.condition("a", CAMERAS[:2]), []
    carv = Carv(teacher, resamples=4)
    expected = carv.estimate(z, condition, torch.Generator().manual_seed(1)).fbar
    ask = DiffusersTeacher.predict

    def small(self: DiffusersTeacher, z: Tensor, *rest: Any) -> dict[Branch, Tensor]:
        calls.append(len(z))
        if len(z) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return ask(self, z, *rest)

    monkeypatch.setattr(DiffusersTeacher, "predict", small)
    for count in (6, 4):
        found = carv.estimate(z, condition, torch.Generator().manual_seed(1)).fbar
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
        assert carv.chunk == 2 and calls.count(2) == 4
        assert len(calls) <= count + 1
        calls.clear()


def test_half_precision_gradients(folder: Path) -> None:
    """Of float16 networks, through the encoder too: within 1 % of float32's."""
    rgb = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    gradients = []
    for dtype in ("float32", "float16"):
        teacher = DiffusersTeacher(DiffusersTeacherConfig(path=str(folder), dtype=dtype, cache_text=False))
        picture = rgb.clone().requires_grad_()
        carv = Carv(teacher, resamples=4, guidance=3.0)
        loss, _ = carv(teacher.encode(picture), teacher.condition("a", CAMERAS[:2]), torch.Generator().manual_seed(1))
        loss.backward()
        gradients.append(picture.grad.flatten())  # type: ignore[union-attr]
    one, two = gradients
    assert torch.cosine_similarity(one, two, 0) > 0.999
    assert (one - two).norm() < 0.01 * one.norm() * 4


class TestPerpNeg:
    def test_parts(self) -> None:
        """Perpendicular, row by row; a negative that says nothing changes nothing."""
        g = torch.Generator().manual_seed(0)
        uncond, cond, negative = (torch.randn(3, 4, 8, 8, generator=g) for _ in range(3))
        across = perpendicular(negative, cond)
        assert ((across * cond).flatten(1).sum(1).abs() < 1e-3).all()
        torch.testing.assert_close(perpendicular(negative, torch.zeros_like(cond)), negative)
        plain = uncond + 7.5 * (cond - uncond)
        weights = -torch.rand(3, 1, generator=g)
        for negatives, pushed in ((uncond[:, None], weights), (negative[:, None], weights * 0)):
            raw: dict[Branch, Tensor] = {"uncond": uncond, "cond": cond, "negatives": negatives}
            torch.testing.assert_close(PerpNeg(7.5)(raw, SimpleNamespace(weights=pushed)), plain)

    def test_views_are_mixed_and_pushed_apart(self) -> None:
        """Front at 0, side at 90, half and half between; from above nothing is pushed. Weights are at most 0."""
        views = ViewPrompts(perp_neg=True)
        azimuth = torch.tensor([0.0, 45.0, -90.0, 135.0, 180.0, 0.0])
        cond, negatives, weights = views.shares(azimuth, torch.tensor([0.0, 0, 0, 0, 0, 80]))
        expected = [[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0, 1, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
        torch.testing.assert_close(cond, torch.tensor(expected))
        assert negatives.shape == (6, 2, 4) and (weights[:5] <= 0).all() and not weights[5].any()
        # The front is pushed away most from behind, and hardly from the front.
        assert weights[4, 0] < weights[1, 0] and weights[0, 0].abs() < 0.01

    def test_rows_are_told_their_own_views(self, folders: dict[str, Path]) -> None:
        """Of a batch of views and draws, each as it would be alone."""
        teacher = DiffusersTeacher(
            DiffusersTeacherConfig(path=str(folders["sd"]), cache_text=False), views=ViewPrompts(perp_neg=True)
        )
        z, t, eps = draws(teacher)
        condition = teacher.condition("a", CAMERAS, "side")
        together = sds(teacher, z, t, eps, condition, 5.0, perp_neg=True)
        for row in range(4):
            one = torch.tensor([row])
            alone = sds(teacher, z[one], t[one], eps[one], condition[one], 5.0, perp_neg=True)
            torch.testing.assert_close(alone[0], together[row], rtol=1e-3, atol=1e-5)
        plain = DiffusersTeacher(DiffusersTeacherConfig(path=str(folders["sd"]), cache_text=False))
        usual = sds(plain, z, t, eps, plain.condition("a", CAMERAS, "side"), 5.0)
        torch.testing.assert_close(usual[3], together[3], rtol=1e-3, atol=1e-5)  # from above
        assert not torch.allclose(usual[1], together[1], rtol=1e-2)

    def test_words_of_views(self) -> None:
        assert with_views("a cup")[2] == "a cup, back view"


def test_what_is_cut_off_a_long_prompt_is_said(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once, on the terminal; the teacher is told what is before it."""
    words = ["prompt=" + "a front view, " * 60 + "end", "threads=1", "device=cpu", f"teacher.path={folder}"]
    words += ["teacher.view_words=false", "teacher.cache_text=false", "training.steps=2", "mesh.formats=[]"]
    words += ["scene.type=voxel_grid", "scene.resolution=8", "cameras.height=8", "cameras.width=8"]
    words += ["renderer.samples=8", "turntable.frames=2", "turntable.size=16", "turntable.sheet=16"]
    code, _, err = carv3d("generate", *words, "--output", str(tmp_path / "run"), capsys=capsys)
    assert code == 0, err
    text = " ".join(err.split())
    # The third, of SD 3, takes 256.
    short = sum((folder / part).exists() for part in ("text_encoder", "text_encoder_2"))
    assert text.count("warning: a prompt is too long") == short
    assert text.count("and is not told ") == short and "[...]" in text
    assert "and is not told " in (tmp_path / "run" / "log.txt").read_text()


def test_denoiser_of_other_channels_is_refused(tmp_path: Path) -> None:
    """Inpainting models, for instance, are Stable Diffusion pipelines too."""
    folder = make_pipeline(tmp_path / "teacher", channels=9)
    with pytest.raises(UserError, match=r"latents of 4 channels and its denoiser takes 9"):
        DiffusersTeacher(DiffusersTeacherConfig(path=str(folder)))


def test_samples_of_every_family(folder: Path) -> None:
    """The sampler starts from as much noise as there is a picture behind, and ends in finite pictures."""
    teacher = DiffusersTeacher(DiffusersTeacherConfig(path=str(folder), cache_text=False))
    condition = teacher.condition("a", CAMERAS[:2])
    rng = torch.Generator().manual_seed(0)
    z = ddim_sample(teacher, condition, (2, *teacher.latent_shape), rng, steps=4)
    pictures = teacher.decode(z)
    assert pictures.shape == (2, 3, 16, 16) and torch.isfinite(pictures).all()


def test_sd3_without_its_largest_text_encoder(tmp_path: Path) -> None:
    """T5 may be left out: its words are zeros, as diffusers has it."""
    folder = make_sd3(tmp_path / "sd3", t5=False)
    words = DiffusersTeacher(DiffusersTeacherConfig(path=str(folder), cache_text=False)).family.embed(["a"])
    torch.testing.assert_close(words["text"], told(folder, "a", "")["text"][0])
    assert not words["text"][:, -256:].any()


CONFIGS = {"sd": "sd21-base", "sdxl": "sdxl", "sd3": "sd3", "deepfloyd": "deepfloyd"}
SMALL = [
    *(
        "device=cpu",
        "threads=1",
        "teacher.dtype=float32",
        "training.steps=4",
        "training.checkpoint_every=2",
        "training.denoising_preview_every=4",
    ),
    *("cameras.height=16", "cameras.width=16", "renderer.samples=16", "guidance.resamples=2"),
    *("scene.type=voxel_grid", "scene.resolution=8"),
    *(
        "turntable.frames=2",
        "turntable.size=16",
        "turntable.sheet=16",
        "mesh.resolution=16",
        "mesh.texture_size=32",
        "mesh.formats=[glb]",
    ),
]


@pytest.mark.parametrize("name", MAKERS)
def test_from_config_to_mesh_and_on(
    name: str, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`carv3d generate configs/<family>.yaml` on the tiny pipeline, then a longer run from its checkpoint."""
    words = [f"teacher.path={folders[name]}", f"output_dir={tmp_path}", *SMALL]
    code, _, err = carv3d("generate", CONFIGS[name], "a view", *words, capsys=capsys)
    assert code == 0, err
    run = next((tmp_path / CONFIGS[name]).iterdir())
    assert (run / "mesh" / "mesh.glb").exists() and (run / "contact_sheet.png").exists()
    assert (run / "previews" / "denoised_000004.png").exists()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4] and all(row["gradient_norm"] > 0 for row in rows)
    code, _, err = carv3d("generate", "--resume", str(run), "training.steps=6", capsys=capsys)
    assert code == 0 and len((run / "metrics.jsonl").read_text().splitlines()) == 6, err


@pytest.mark.parametrize(
    ("make", "said", "expected"),
    [
        (make_sdxl, None, torch.float32),
        (make_sdxl, False, torch.float16),  # as the config of a VAE that was made for float16
        (make_pipeline, True, torch.float16),  # this family's own pipeline does not read it
    ],
)
def test_a_vae_that_overflows_in_float16_is_computed_in_float32(
    make: Callable[[Path], Path], said: bool | None, expected: torch.dtype, tmp_path: Path
) -> None:
    """SDXL's gives pictures of not-a-numbers in float16; its denoiser keeps the number format that was asked for."""
    make(tmp_path)
    path = tmp_path / "vae" / "config.json"
    config = json.loads(path.read_text())
    config.pop("force_upcast")
    path.write_text(json.dumps(config if said is None else config | {"force_upcast": said}))
    loader = Loader(tmp_path, torch.float16, torch.device("cpu"))
    family: Any = family_of(tmp_path)(loader, camera="none", posterior="mode")
    assert family.vae.dtype == next(family.vae.parameters()).dtype == expected
    assert family.network.dtype == torch.float16
