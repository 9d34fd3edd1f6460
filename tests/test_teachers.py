"""Teachers: schedule, encoding, guidance, camera, and what they say when they cannot be loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file, save_file

from carv3d.cameras import Cameras
from carv3d.errors import UserError
from carv3d.prompts.views import ViewPrompts
from carv3d.shapes import Thing, reference
from carv3d.teachers import DiffusersTeacher, ExactTeacher, NoiseSchedule
from carv3d.teachers.camera_conditioning import camera_vector
from carv3d.teachers.config import DiffusersTeacherConfig, ExactTeacherConfig
from carv3d.teachers.weights import BUILTIN
from tests.estimates import sds
from tests.pipelines import make_pipeline


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pipeline(tmp_path_factory.mktemp("teacher") / "epsilon", camera=False)


@pytest.fixture(scope="module")
def camera_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pipeline(tmp_path_factory.mktemp("teacher") / "v", camera=True, prediction="v_prediction")


@pytest.fixture
def cameras() -> Cameras:
    return Cameras.look_at_origin(torch.tensor([0.0, 90.0, 180.0, 10.0]), torch.tensor([0.0, 0.0, 0.0, 75.0]))


CAMERA = Cameras.look_at_origin(torch.tensor([0.0]), torch.tensor([10.0]))


def draws(teacher: DiffusersTeacher, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    z = torch.randn(count, 4, 8, 8, generator=g)
    return z, torch.tensor([20, 300, 700, 980])[:count], torch.randn(z.shape, generator=g)


@pytest.mark.parametrize("kind", ["scaled_linear", "linear", "squaredcos_cap_v2"])
def test_schedule_agrees_with_diffusers_and_is_double(kind: str) -> None:
    """The same betas; theirs is float32."""
    ours = NoiseSchedule.of_betas(kind, 0.00085, 0.012, 1000)
    theirs = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule=kind).alphas_cumprod
    assert ours.alpha.dtype == ours.sigma.dtype == torch.float64
    torch.testing.assert_close((ours.alpha**2).float(), theirs, rtol=2e-4, atol=1e-9)
    torch.testing.assert_close(ours.alpha**2 + ours.sigma**2, torch.ones(1000, dtype=torch.float64))


def test_flow_schedule_agrees_with_diffusers() -> None:
    """Sigmas, and what the network is told of them, in our order: from clean to noise."""
    ours, theirs = NoiseSchedule.of_flow(3.0, 1000), FlowMatchEulerDiscreteScheduler(shift=3.0)
    torch.testing.assert_close(ours.sigma.float(), theirs.sigmas.flip(0))
    torch.testing.assert_close(ours.times, theirs.timesteps.flip(0))
    torch.testing.assert_close(ours.alpha + ours.sigma, torch.ones(1000, dtype=torch.float64))


def test_velocity_and_epsilon_residuals_agree_with_diffusers(
    pipeline: Path, camera_pipeline: Path, cameras: Cameras
) -> None:
    """The network's raw output, turned into x0 by diffusers' DDIMScheduler and back into eps by definition."""
    for folder in (pipeline, camera_pipeline):
        teacher = DiffusersTeacher(DiffusersTeacherConfig(path=str(folder)))
        z, t, eps = draws(teacher, 4)
        condition = teacher.condition("a", cameras)
        found = sds(teacher, z, t, eps, condition, 1.0)
        scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
        scheduler.set_timesteps(1000)
        z_t = scheduler.add_noise(z, eps, t)
        with torch.no_grad():
            words = condition.mixed(condition.cond)["text"]
            output = teacher.family.network(z_t, t, words, class_labels=condition.camera).sample
        for i in range(4):
            clean = scheduler.step(output[i : i + 1], int(t[i]), z_t[i : i + 1]).pred_original_sample
            a = scheduler.alphas_cumprod[t[i]]
            expected = (z_t[i] - a.sqrt() * clean[0]) / (1 - a).sqrt() - eps[i]
            torch.testing.assert_close(found[i], expected, rtol=1e-3, atol=2e-3)


def test_guidance_is_uncond_plus_scale_times_difference(camera_pipeline: Path, cameras: Cameras) -> None:
    """s = 1 is the conditional model, s = 0 the unconditional one, and s = 5 lies on their line."""
    teacher = DiffusersTeacher(DiffusersTeacherConfig(path=str(camera_pipeline)))
    z, t, eps = draws(teacher, 4)
    condition = teacher.condition("a", cameras)
    uncond, cond, five = (sds(teacher, z, t, eps, condition, s) for s in (0.0, 1.0, 5.0))
    assert not torch.allclose(uncond, cond)
    torch.testing.assert_close(five, uncond + 5 * (cond - uncond), rtol=1e-3, atol=1e-4)
    almost = sds(teacher, z, t, eps, condition, 1 + 1e-6)
    torch.testing.assert_close(almost, cond, rtol=1e-3, atol=1e-4)


def test_rows_do_not_mix(camera_pipeline: Path, cameras: Cameras) -> None:
    """The residual of a row in a batch is that of the row alone, under guidance too."""
    teacher = DiffusersTeacher(DiffusersTeacherConfig(path=str(camera_pipeline)))
    z, t, eps = draws(teacher, 4)
    condition = teacher.condition("a", cameras)
    together = sds(teacher, z, t, eps, condition, 3.0)
    for i in range(4):
        row = torch.tensor([i])
        alone = sds(teacher, z[row], t[row], eps[row], condition[row], 3.0)
        torch.testing.assert_close(alone[0], together[i], rtol=1e-4, atol=1e-5)


def test_view_words_follow_the_camera(cameras: Cameras) -> None:
    """Front, side, back, overhead; the same a turn further."""
    views = ViewPrompts()
    assert views.index(cameras.azimuth, cameras.elevation).tolist() == [0, 1, 2, 3]
    assert views.index(cameras.azimuth + 360, cameras.elevation).tolist() == [0, 1, 2, 3]


def test_text_embeddings_are_computed_once(
    pipeline: Path, cameras: Cameras, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step asks for a condition; text encoders run before the first, and never again for the same text."""
    monkeypatch.setenv("CARV3D_CACHE", str(tmp_path))
    teacher = DiffusersTeacher(DiffusersTeacherConfig(path=str(pipeline)))
    first = teacher.condition("a", cameras)
    for later in (
        teacher,
        DiffusersTeacher(DiffusersTeacherConfig(path=str(pipeline))),
    ):  # the second reads what the first left on disk
        monkeypatch.setattr(later.family, "embed", lambda *_: pytest.fail("encoded again"))
        torch.testing.assert_close(later.condition("a", cameras).embeddings, first.embeddings)
    half = DiffusersTeacher(
        DiffusersTeacherConfig(path=str(pipeline), dtype="bfloat16")
    )  # which is another text's file
    assert half.condition("a", cameras).embeddings["text"].dtype == torch.bfloat16
    next((tmp_path / "text").glob("*.safetensors")).write_bytes(b"nonsense")
    torch.testing.assert_close(
        DiffusersTeacher(DiffusersTeacherConfig(path=str(pipeline))).condition("a", cameras).embeddings,
        first.embeddings,
    )


def test_text_cache_follows_the_weights(
    pipeline: Path, cameras: Cameras, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another text encoder in the same folder is not answered for by the old one's file; no cache leaves no file."""
    monkeypatch.setenv("CARV3D_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "teacher"
    shutil.copytree(pipeline, folder)
    first = DiffusersTeacher(DiffusersTeacherConfig(path=str(folder))).condition("a", cameras).embeddings["text"]
    path = next((folder / "text_encoder").glob("*.safetensors"))
    save_file({k: v * 2 for k, v in load_file(path).items()}, path, metadata={"format": "pt"})
    second = DiffusersTeacher(DiffusersTeacherConfig(path=str(folder))).condition("a", cameras).embeddings["text"]
    assert not torch.allclose(first, second)
    count = len(list((tmp_path / "cache").rglob("*.*")))
    DiffusersTeacher(DiffusersTeacherConfig(path=str(folder), cache_text=False)).condition("a view", cameras)
    assert len(list((tmp_path / "cache").rglob("*.*"))) == count


def test_encode_is_differentiable_scaled_and_resizes(pipeline: Path) -> None:
    """32 pixel renders reach the 16 pixel teacher; posterior mode, times the scaling factor."""
    teacher = DiffusersTeacher(DiffusersTeacherConfig(path=str(pipeline)))
    assert teacher.image_size == 16
    rgb = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    z = teacher.encode(rgb)
    z.sum().backward()
    assert z.shape == (2, 4, 8, 8) and rgb.grad is not None and rgb.grad.abs().sum() > 0
    small = torch.rand(1, 3, 16, 16)
    mean = teacher.family.vae.encode(small * 2 - 1).latent_dist.mean
    torch.testing.assert_close(teacher.encode(small), mean * 0.5)
    sampling = DiffusersTeacher(DiffusersTeacherConfig(path=str(pipeline), posterior="sample"))
    one, two = (sampling.encode(small, torch.Generator().manual_seed(s)) for s in (0, 1))
    assert not torch.allclose(one, two)


def test_camera_is_told_only_to_networks_that_take_it(pipeline: Path, camera_pipeline: Path, cameras: Cameras) -> None:
    """auto finds out; none hides it; vector where it is impossible is an error."""
    assert DiffusersTeacher(DiffusersTeacherConfig(path=str(pipeline))).condition("a", cameras).camera is None
    told = DiffusersTeacher(DiffusersTeacherConfig(path=str(camera_pipeline)))
    assert told.takes_camera
    torch.testing.assert_close(told.condition("a", cameras).camera, camera_vector(cameras.azimuth, cameras.elevation))
    assert (
        DiffusersTeacher(DiffusersTeacherConfig(path=str(camera_pipeline), camera="none"))
        .condition("a", cameras)
        .camera
        is None
    )
    with pytest.raises(UserError, match=r"teacher\.camera=none"):
        DiffusersTeacher(DiffusersTeacherConfig(path=str(pipeline), camera="vector"))


def test_half_precision_teacher_gives_nearly_the_same(pipeline: Path, cameras: Cameras) -> None:
    """bfloat16 networks, float32 residuals."""
    full, half = (
        DiffusersTeacher(DiffusersTeacherConfig(path=str(pipeline))),
        DiffusersTeacher(DiffusersTeacherConfig(path=str(pipeline), dtype="bfloat16")),
    )
    z, t, eps = draws(full, 4)
    one = sds(full, z, t, eps, full.condition("a", cameras), 3.0)
    two = sds(half, z, t, eps, half.condition("a", cameras), 3.0)
    assert two.dtype == torch.float32
    assert torch.cosine_similarity(one.flatten(), two.flatten(), 0) > 0.995


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda f: shutil.rmtree(f), "no teacher at"),
        (
            lambda f: [shutil.rmtree(p) if p.is_dir() else p.unlink() for p in f.iterdir()],
            "model_index.json is missing",
        ),
        (lambda f: next((f / "unet").glob("*.safetensors")).unlink(), "unet holds no .safetensors"),
        (lambda f: next((f / "vae").glob("*.safetensors")).write_bytes(b"nonsense"), "cannot be read"),
        (lambda f: next((f / "text_encoder").glob("*.safetensors")).write_bytes(b""), "cannot be read"),
        (lambda f: next((f / "unet").glob("*.safetensors")).rename(f / "unet" / "model.bin"), "can run any code"),
        (lambda f: shutil.rmtree(f / "scheduler"), "has no scheduler"),
        (lambda f: (f / "model_index.json").write_text('{"_class_name": "PixArt"}'), "PixArt, which is not known"),
        (lambda f: (f / "model_index.json").write_text("{"), "model_index.json cannot be read"),
    ],
)
def test_weights_that_cannot_be_loaded_are_one_line(pipeline: Path, tmp_path: Path, spoil, message: str) -> None:  # type: ignore[no-untyped-def]
    """Missing, foreign, partial and corrupt folders: what is wrong and what to do."""
    folder = tmp_path / "teacher"
    shutil.copytree(pipeline, folder)
    spoil(folder)
    with pytest.raises(UserError, match=message) as caught:
        DiffusersTeacher(DiffusersTeacherConfig(path=str(folder), cache_text=False)).condition("a", CAMERA)
    assert "\n" not in str(caught.value)


def test_weights_that_lack_a_tensor_are_refused(pipeline: Path, tmp_path: Path) -> None:
    """The libraries would fill it with random numbers and train on."""
    folder = tmp_path / "teacher"
    shutil.copytree(pipeline, folder)
    path = next((folder / "unet").glob("*.safetensors"))
    tensors = load_file(path)
    del tensors["conv_in.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"unet lacks 1 tensors, conv_in\.weight"):
        DiffusersTeacher(DiffusersTeacherConfig(path=str(folder)))


@pytest.mark.parametrize("change", [{"beta_schedule": "sigmoid"}, {"rescale_betas_zero_snr": True}])
def test_schedules_that_it_cannot_follow_are_refused(pipeline: Path, tmp_path: Path, change: dict[str, object]) -> None:
    """A wrong schedule would train towards nothing, in silence."""
    folder = tmp_path / "teacher"
    shutil.copytree(pipeline, folder)
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match="not supported"):
        DiffusersTeacher(DiffusersTeacherConfig(path=str(folder)))


def test_unknown_prediction_type_is_refused(pipeline: Path, tmp_path: Path) -> None:
    folder = tmp_path / "teacher"
    shutil.copytree(pipeline, folder)
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": "sample"}))
    with pytest.raises(UserError, match="prediction type 'sample' is not supported"):
        DiffusersTeacher(DiffusersTeacherConfig(path=str(folder)))


def test_exact_teacher_pulls_towards_the_true_picture() -> None:
    """At little noise its denoised picture is the nearest reference, whatever the residual's eps."""
    teacher = ExactTeacher(ExactTeacherConfig(views=40, neighbours=8))
    thing = Thing("cone", "red")
    cameras = Cameras.look_at_origin(torch.tensor([0.0]), torch.tensor([10.0]))
    condition = teacher.condition(thing.caption, cameras)
    z, t = condition.points[:, 3], torch.tensor([5])
    eps = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    residual = sds(teacher, z, t, eps, condition, 1.0)
    assert residual.abs().max() < 1e-3
    truth = teacher.encode(reference(thing, cameras)[0])
    assert (condition.points - truth[:, None]).square().mean((0, 2, 3, 4)).min() < 0.05


needs_builtin = pytest.mark.skipif(not (BUILTIN / "unet").exists(), reason="the built-in weights are not trained yet")


@needs_builtin
def test_builtin_teacher_knows_its_words() -> None:
    """Words of the world pass in any order; others are named, with the nearest known one."""
    teacher = DiffusersTeacher()
    cameras = Cameras.look_at_origin(torch.tensor([0.0]), torch.tensor([10.0]))
    teacher.condition("the red chair", cameras)
    with pytest.raises(UserError, match=r"'chiar'.*did you mean 'chair'.*--force"):
        teacher.condition("a red chiar", cameras)
    DiffusersTeacher(force=True).condition("a red chiar", cameras)


@needs_builtin
def test_builtin_weights_ship_small_and_as_safetensors() -> None:
    """Under 25 MB, no pickles."""
    files = [f for f in BUILTIN.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) < 25e6
    assert not [f for f in files if f.suffix in (".bin", ".pt", ".pth", ".ckpt")]
