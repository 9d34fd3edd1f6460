"""Finding weights: folders, mirrors, a hub that is stood in for; what `doctor` says of them; memory told beforehand."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from diffusers import StableDiffusionPipeline
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from transformers import CLIPTextModelWithProjection, T5EncoderModel

from carv3d import build
from carv3d.cameras import CameraSampler
from carv3d.cameras.config import CameraConfig
from carv3d.config import find_config, load
from carv3d.errors import UserError
from carv3d.generation.requirements import scene_memory
from carv3d.teachers import DiffusersTeacher
from carv3d.teachers.config import DiffusersTeacherConfig
from carv3d.teachers.memory import bytes_of, peak_of
from carv3d.teachers.requirements import memory_of
from carv3d.teachers.weights import Remote, SingleFile, Weights, find, look
from carv3d.teachers.weights.files import wanted
from tests.estimates import sds
from tests.pipelines import MAKERS, make_pipeline
from tests.single_file import write_single_file
from tests.test_cli import carv3d


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pipeline(tmp_path_factory.mktemp("weights") / "tiny")


class Hub:
    """Repositories by id, each a folder; notes what was downloaded."""

    def __init__(self, repositories: dict[str, Path], licence: str = "openrail") -> None:
        self.repositories, self.licence, self.downloads = repositories, licence, list[list[str]]()

    def model_info(self, _: Any, source: str, *, revision: str | None, files_metadata: bool) -> Any:
        if source not in self.repositories:
            raise RepositoryNotFoundError("404", response=SimpleNamespace(headers={}, request=None))  # type: ignore[arg-type]
        root = self.repositories[source]
        files = [path for path in root.rglob("*") if path.is_file()]
        siblings = [SimpleNamespace(rfilename=f.relative_to(root).as_posix(), size=f.stat().st_size) for f in files]
        return SimpleNamespace(siblings=siblings, sha="abc123", card_data={"license": self.licence})

    def snapshot_download(self, source: str, *, allow_patterns: list[str] | None = None, **_: Any) -> str:
        if allow_patterns is None:  # of what was downloaded before
            raise LocalEntryNotFoundError("nothing")
        self.downloads.append(allow_patterns)
        return str(self.repositories[source])


@pytest.fixture
def hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    found = Hub({"second/home": folder})
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *a, **k: found.model_info(*a, **k))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", found.snapshot_download)
    return found


def test_one_set_of_weights_a_part() -> None:
    """Half precision where it is wanted and there, shards with their index, no pickles, nothing unused."""
    names = ["model_index.json", "README.md", "v1.safetensors", "scheduler/scheduler_config.json"]
    names += [
        f"unet/{x}" for x in ("config.json", "diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors")
    ]
    names += ["unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.non_ema.safetensors"]
    names += ["text_encoder/config.json", "text_encoder/model-00001-of-00002.safetensors"]
    names += ["text_encoder/model-00002-of-00002.safetensors", "text_encoder/model.safetensors.index.json"]
    names += ["safety_checker/model.safetensors", "tokenizer/vocab.json", "tokenizer/merges.txt"]
    common = ["model_index.json", "scheduler/scheduler_config.json", "tokenizer/vocab.json", "tokenizer/merges.txt"]
    common += [name for name in names if name.startswith("text_encoder/")] + ["unet/config.json"]
    full, half = (wanted(names, half=half, pickle=False) for half in (False, True))
    assert sorted(full) == sorted([*common, "unet/diffusion_pytorch_model.safetensors"])
    assert set(half) - set(full) == {"unet/diffusion_pytorch_model.fp16.safetensors"}
    exports = ["vae_decoder/model.safetensors", "unet/openvino_model.bin", "text_encoder/flax_model.msgpack"]
    assert wanted([*names, *exports], half=False, pickle=True) == full
    shards = [f"transformer/{x}" for x in ("model-00001-of-00002", "model-00002-of-00002")]
    both = [f"{name}{kind}.safetensors" for name in shards for kind in ("", ".fp16")]
    indices = [f"transformer/model.safetensors.index{kind}.json" for kind in ("", ".fp16")]
    for there, half, kind in (
        (both, True, ".fp16"),
        (both, False, ""),
        (both[::2], True, ""),
        (both[1::2], False, ".fp16"),
    ):
        found = wanted(["model_index.json", *there, *indices], half=half, pickle=False)
        index = f"transformer/model.safetensors.index{kind}.json"
        assert sorted(found[1:]) == sorted([*(f"{name}{kind}.safetensors" for name in shards), index])
    pickled = ["model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.bin"]
    with pytest.raises(UserError, match="can run any code"):
        wanted(pickled, half=False, pickle=False)
    assert "unet/diffusion_pytorch_model.bin" in wanted(pickled, half=False, pickle=True)
    with pytest.raises(UserError, match="no diffusers pipeline"):
        wanted(["README.md"], half=False, pickle=False)


def test_mirrors_are_tried_in_order(hub: Hub, folder: Path) -> None:
    """A model that has moved is found at its new home, with the commit as its revision, and loads."""
    found = find("first/home", mirrors=["third/home", "second/home"])
    assert (found.source, found.revision) == ("second/home", "abc123")
    assert all(not name.endswith(".bin") for name in hub.downloads[0]) and "unet/config.json" in hub.downloads[0]
    DiffusersTeacher(DiffusersTeacherConfig(path="first/home", mirrors=["second/home"], cache_text=False))
    assert find("first/home", mirrors=[str(folder)]).source == str(folder)
    with pytest.raises(UserError, match=r"first/home is not on the hub, or not public; nowhere does not exist"):
        find("first/home", mirrors=["nowhere"])


def test_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise ConnectionError("Cannot reach https://example.org/api: no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fail)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(UserError, match="the hub cannot be asked for some/model") as caught:
        find("some/model")
    assert "\n" not in str(caught.value) and "https" not in str(caught.value)


def test_what_is_on_the_hub_is_told_without_downloading(hub: Hub) -> None:
    found = look("first/home", mirrors=["second/home"])
    assert isinstance(found, Remote) and not hub.downloads
    assert found.licence == "openrail" and found.size > 1000 and not found.here


def test_one_file_must_be_safetensors(tmp_path: Path) -> None:
    for name, says in (("model.ckpt", "can run any code"), ("model.safetensors", "damaged")):
        (tmp_path / name).write_bytes(b"nonsense")
        with pytest.raises(UserError, match=says):
            find(str(tmp_path / name))


def test_a_whole_model_in_one_file(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what its pipeline folder says, is converted once, and `doctor` does not convert it."""
    monkeypatch.setenv("CARV3D_CACHE", str(tmp_path / "cache"))
    file = write_single_file(folder, tmp_path / "model.safetensors")
    code, _, err = carv3d("doctor", "sd21-base", f"teacher.path={file}", "device=cpu")
    assert code == 0, err
    found = look(str(file))
    assert isinstance(found, SingleFile) and not (tmp_path / "cache").exists()
    z, eps = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    t, cameras = (
        torch.tensor([100, 900]),
        CameraSampler(CameraConfig(distance=[3, 3])).sample(2, torch.Generator().manual_seed(0)),
    )
    residuals = []
    for path in (folder, file):
        teacher = DiffusersTeacher(DiffusersTeacherConfig(path=str(path), cache_text=False))
        latents = teacher.encode(teacher.decode(z))
        residuals.append([latents, sds(teacher, z, t, eps, teacher.condition("a b", cameras, "c"), 3.0)])
    torch.testing.assert_close(residuals[1], residuals[0])
    again = look(str(file))
    assert isinstance(again, Weights) and again.folder == found.folder


def test_a_disk_too_full_for_the_conversion(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, and nothing half-made is left."""
    monkeypatch.setenv("CARV3D_CACHE", str(tmp_path / "cache"))
    file = write_single_file(folder, tmp_path / "model.safetensors")

    def full(*_: Any, **__: Any) -> None:
        (tmp_path / "cache" / "converted").mkdir(parents=True)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(StableDiffusionPipeline, "save_pretrained", full)
    with pytest.raises(UserError, match="the disk is full"):
        find(str(file))
    assert not list((tmp_path / "cache" / "converted").iterdir())


def test_doctor_of_a_config(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights, licence, memory; exit code 2 where the weights are not there."""
    copy = tmp_path / "teacher"
    shutil.copytree(folder, copy)
    (copy / "README.md").write_text("---\nlicense: mit\n---\n")
    code, out, err = carv3d("doctor", "sd21-base", f"teacher.path={copy}", "device=cpu", "--json", capsys=capsys)
    assert code == 0, err
    assert "licence: mit" in out and "GiB at R = 1, K = 8" in out
    where = ["teacher.path=/nowhere", "teacher.mirrors=[]", "device=cpu"]
    code, out, _ = carv3d("doctor", "sd21-base", *where, "--json", capsys=capsys)
    assert code == 2 and "/nowhere does not exist" in out


@pytest.mark.parametrize("name", MAKERS)
def test_memory_is_told_from_configs_alone(name: str, tmp_path: Path) -> None:
    """The weights' bytes are those of the loaded teacher; more draws take more, chunks no more than their own."""
    folder = MAKERS[name](tmp_path / name)
    teacher = DiffusersTeacher(DiffusersTeacherConfig(path=str(folder), cache_text=False))
    networks = [teacher.family.network, *([teacher.family.vae] if hasattr(teacher.family, "vae") else [])]
    for file in folder.rglob("*.safetensors"):
        file.unlink()
    base = [f"teacher.path={folder}", "guidance.resamples=8", "prompt=a"]
    whole, chunked = (
        memory_of(folder, load(find_config("shapes"), [*base, f"guidance.chunk={n}"]), torch.device("cpu"))
        for n in (0, 2)
    )
    assert whole.weights == sum(map(bytes_of, networks))
    assert chunked.denoise < 0.5 * whole.denoise
    assert chunked.encode == whole.encode and whole.peak > whole.weights


def test_peak_memory_of_known_tensors() -> None:
    """4 bytes a number: what is alive at once counts, what is freed or was there before does not; on any device."""
    for device in ("cpu", "meta"):
        x = torch.zeros(1000, device=device)

        def chain(x: torch.Tensor = x) -> torch.Tensor:
            for _ in range(5):
                x = x + 1
            return x.view(10, 100).T

        assert peak_of(chain) == 2 * 4000
        assert peak_of(lambda x=x: [x + 1 for _ in range(5)]) == 5 * 4000  # type: ignore[misc]
        assert peak_of(lambda x=x: x.view(10, 100)) == 0  # type: ignore[misc]


def test_a_run_that_will_not_fit_is_said_before_it_starts(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A warning, since the figure is an estimate; here of a machine that has 1 MB left."""
    free = SimpleNamespace(available=2**20)
    monkeypatch.setattr("carv3d.system.doctor.psutil.virtual_memory", lambda: free)

    def no_weights(*_: object) -> None:
        raise UserError("loading")

    monkeypatch.setattr("carv3d.build.teacher", no_weights)
    words = ["sd21-base", "a cup", f"teacher.path={folder}", "device=cpu", "cameras.height=16", "cameras.width=16"]
    words += ["renderer.samples=8", "scene.log2_table=10", "scene.levels=3"]
    code, _, err = carv3d("generate", *words, "--output", str(tmp_path / "run"), capsys=capsys)
    text = " ".join(err.split())
    assert code == 2 and text.index("will probably not fit into memory: ") < text.index("error: loading")
    assert "renders) " not in text and " renders + " in text and "GiB free of memory: lower guidance.chunk" in text


def test_memory_has_the_scene_and_the_largest_text_encoder(tmp_path: Path) -> None:
    """Text encoders are there before the first step, one at a time; normals and pixels make the scene's part."""
    folder = MAKERS["sd3"](tmp_path)
    encoders = [T5EncoderModel, CLIPTextModelWithProjection]
    sizes = [
        bytes_of(kind.from_pretrained(folder, subfolder=part))
        for kind, part in zip(encoders, ("text_encoder_3", "text_encoder"), strict=True)
    ]
    found = memory_of(folder, load(find_config("shapes"), ["prompt=a"]), torch.device("cpu"))
    assert found.text >= max(sizes) and found.peak >= found.weights + found.text
    base = ["scene.type=hash_grid", "scene.log2_table=8", "renderer.samples=16", "prompt=a"]
    plain, larger, normals = (
        scene_memory(load(find_config("shapes"), [*base, *more]), torch.device("cpu"))
        for more in ([], ["cameras.height=128"], ["regularisers.orientation=1"])
    )
    assert larger.render == pytest.approx(2 * plain.render, rel=0.1)
    assert normals.render > 2 * plain.render and normals.kept == plain.kept


def test_the_scenes_memory_is_what_a_render_takes() -> None:
    """Extrapolated from small pictures, against the peak at the whole size."""
    config = load(find_config("shapes"), ["renderer.backend=torch", "prompt=a"])
    rng = torch.Generator().manual_seed(0)
    scene, renderer = build.scene(config, rng), build.renderer(config, torch.device("cpu"))
    renderer.update_occupancy(scene, 0, rng)
    cameras = build.camera_sampler(config).around(1, 15.0, config.cameras.height)
    true = peak_of(lambda: renderer(scene, cameras, rng).rgb.sum().backward()) - 4 * scene.grid.numel()
    assert scene_memory(config, torch.device("cpu")).render == pytest.approx(true, rel=0.25)
