"""The command line as a user meets it: from a prompt to files, and one clear line for every mistake."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import imageio.v3 as iio
import pytest
import trimesh

from carv3d import cli, images
from carv3d.cli.app import sort_words
from carv3d.runs import disk_errors
from carv3d.system.explanations import explain
from carv3d.teachers.weights import BUILTIN
from tests.pipelines import make_pipeline

QUICK = [
    "teacher.type=exact",
    "teacher.views=40",
    "teacher.neighbours=8",
    "threads=1",
    "scene.resolution=24",
    "cameras.height=32",
    "cameras.width=32",
    "renderer.samples=24",
    "training.steps=60",
    "training.preview_every=30",
    "turntable.frames=4",
    "turntable.size=40",
    "turntable.sheet=40",
    "mesh.resolution=48",
    "mesh.faces=1500",
    "mesh.texture_size=128",
]


def carv3d(*words: str, capsys: pytest.CaptureFixture[str] | None = None) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command line, run in this process."""
    before = sys.argv
    sys.argv = ["carv3d", *words]
    code = 0
    try:
        cli.main()
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.argv = before
    out, err = capsys.readouterr() if capsys else ("", "")
    return code, out, err


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of `generate`."""
    folder = tmp_path_factory.mktemp("runs") / "cone"
    code, _, _ = carv3d("generate", "shapes", "a red cone", *QUICK, "--output", str(folder))
    assert code == 0
    return folder


def test_generate_leaves_the_run_folder(run: Path) -> None:
    """Config, environment, metrics, log, checkpoints, previews, contact sheet, video, mesh in three formats."""
    names = {p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file()}
    for name in ("config.yaml", "environment.json", "metrics.jsonl", "contact_sheet.png", "turntable.mp4"):
        assert name in names
    assert {"previews/step_000030.png", "previews/step_000060.png"} <= names
    assert {"checkpoints/step_000060/scene.safetensors", "checkpoints/step_000060/state.json"} <= names
    assert {"mesh/mesh.glb", "mesh/mesh.obj", "mesh/mesh.ply"} <= names
    assert len(iio.imread(run / "turntable.mp4", plugin="FFMPEG")) == 4
    assert any(name.startswith("tensorboard/") for name in names)
    assert not [name for name in names if "tmp" in name]


def test_evaluate_reports_the_promised_keys(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Among 160 objects the quick run is already near a red cone."""
    code, out, _ = carv3d("evaluate", str(run), "--json", capsys=capsys)
    figures = json.loads(out)
    assert code == 0
    assert set(figures) >= {"prompt", "psnr", "iou", "retrieval_rank", "mesh_iou", "seconds", "steps"}
    assert figures["steps"] == 60 and figures["seconds"] > 0
    assert figures["retrieval_rank"] <= 20 and figures["iou"] > 0.6


def test_export_takes_its_options(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only the formats asked for; vertex colours; fewer faces."""
    code, out, _ = carv3d(
        *(
            "export",
            str(run),
            "--format",
            "ply",
            "--texture",
            "vertex",
            "--resolution",
            "32",
            "--faces",
            "300",
        ),
        *("--output", str(tmp_path), "--json"),
        capsys=capsys,
    )
    assert code == 0
    assert [p.name for p in tmp_path.iterdir()] == ["mesh.ply"]
    assert json.loads(out)["faces"] <= 300
    mesh = trimesh.load_mesh(tmp_path / "mesh.ply")
    assert mesh.is_watertight and mesh.volume > 0


def test_a_change_that_is_refused_leaves_the_run_as_it_was(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its config is written once the run has been loaded with the change."""
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    before = (copy / "config.yaml").read_bytes()
    for override, said in (
        ("scene.resolution=9", "what was changed does not fit the checkpoint"),
        ("renderer.background=learned", "what was changed does not fit the checkpoint"),
        ("teacher.path=/nowhere", "teacher"),
        ("training.steps=2", "has done 60: give more"),
        ("device=cuda:77", "device"),
    ):
        code, _, err = carv3d("generate", "--resume", str(copy), override, capsys=capsys)
        assert code == 2 and said in " ".join(err.split()), (override, err)
        assert (copy / "config.yaml").read_bytes() == before, override
    assert carv3d("generate", "--resume", str(copy), "training.steps=61")[0] == 0
    assert "steps: 61" in (copy / "config.yaml").read_text()


def test_render_again(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another turntable, elsewhere, from the checkpoint; a name of no video is refused at once."""
    video = tmp_path / "turn.mp4"
    code, _, _ = carv3d("render", str(run), "--frames", "3", "--size", "48", "--output", str(video))
    assert code == 0 and iio.imread(video, plugin="FFMPEG").shape[:3] == (3, 48, 48)
    code, _, said = carv3d("render", str(run), "--output", str(tmp_path / "turn.avi"), capsys=capsys)
    assert code == 2 and "ends in .mp4, .webm, .gif" in said and not list(tmp_path.glob("*.avi"))


def test_diffusers_pipeline_folder_end_to_end(tmp_path: Path) -> None:
    """Any Stable-Diffusion-style folder is a teacher: random weights, a few steps, a finished run."""
    teacher = make_pipeline(tmp_path / "teacher", camera=False)
    words = [w for w in QUICK if not w.startswith(("teacher", "training"))]
    words += [f"teacher.path={teacher}", "training.steps=3", "mesh.formats=[]", "prompt=anything goes"]
    code, _, _ = carv3d("generate", "shapes", *words, "--output", str(tmp_path / "run"))
    assert code == 0 and (tmp_path / "run" / "turntable.mp4").exists()


MISTAKES = [
    (["generate"], "prompt"),
    (
        ["generate", "a red cone", "guidance.resample=3"],
        "did you mean 'guidance.resamples'|did you mean 'resamples'",
    ),
    (["generate", "a red cone", "guidance.resamples=many"], "guidance.resamples"),
    (["generate", "a red cone", "guidance.resamples=0"], "guidance.resamples"),
    (["generate", "a red cone", "guidance.renders=0"], "guidance.renders"),
    (["generate", "a red cone", "guidance.t_max=1.2"], "guidance.t_max"),
    (["generate", "a red cone", "guidance.t_min=0.9", "guidance.t_max=0.5"], "t_min"),
    (["generate", ""], "prompt"),
    (["generate", "a red elephant"], "does not know 'elephant'.*it knows objects: sphere.*--force"),
    (["generate", "a red cone", "device=cuda"], "no CUDA|not built with CUDA|sees no CUDA"),
    (["generate", "a red cone", "teacher.path=/nowhere"], "no teacher at '/nowhere'"),
    (["generate", "a red cone", "shapez.yaml"], "no config 'shapez.yaml'.*did you mean 'shapes'"),
    (["generate", "a red cone", "a blue cone"], "what is 'a blue cone'"),
    (["generate", "--resume", "nowhere"], "no run nowhere"),
    (["evaluate", "."], "is not a run"),
    (["config", "scene.type=gaussian"], "scene.type"),
]


@pytest.mark.parametrize("words, message", MISTAKES, ids=lambda v: " ".join(v)[-40:] if isinstance(v, list) else "")
def test_mistakes_are_one_line_and_code_2(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nothing is written, no traceback is shown."""
    import re

    if words[-1] == "device=cuda":
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    code, _, err = carv3d(*words, capsys=capsys)
    assert code == 2, err
    assert re.search(message, err), err
    assert err.count("\n") == 1 and "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_output_folder_in_use_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Somebody's files stay as they are."""
    (tmp_path / "precious.txt").write_text("mine")
    code, _, err = carv3d("generate", "shapes", "a red cone", *QUICK, "--output", str(tmp_path), capsys=capsys)
    assert code == 2 and "exists and is not empty" in err
    assert [p.name for p in tmp_path.iterdir()] == ["precious.txt"]


def test_empty_isosurface_says_the_density_range(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And a threshold to try; no file is made."""
    code, _, err = carv3d("export", str(run), "--threshold", "0.999999", "--output", str(tmp_path / "m"), capsys=capsys)
    assert code == 2 and "densit" in err and "threshold" in err
    assert not list(tmp_path.rglob("mesh.*"))


@pytest.mark.parametrize("spoil", ["flip", "foreign", "pickle"])
def test_checkpoints_that_cannot_be_used(
    run: Path, tmp_path: Path, spoil: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A flipped byte, another run's tensors, a pickle: refused in one line."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    for step in folder.glob("checkpoints/step_*"):
        scene = step / "scene.safetensors"
        if spoil == "flip":
            data = bytearray(scene.read_bytes())
            data[-5] ^= 1
            scene.write_bytes(data)
        elif spoil == "pickle":
            scene.rename(step / "scene.pt")
    words = ["render", str(folder), "--frames", "1", "--size", "16"]
    if spoil == "foreign":
        text = (folder / "config.yaml").read_text()
        (folder / "config.yaml").write_text(text.replace("resolution: 24", "resolution: 20"))
    code, _, err = carv3d(*words, capsys=capsys)
    message = {
        "flip": "damaged",
        "foreign": "not of this run's config",
        "pickle": r"\.pt files may run code",
    }[spoil]
    assert code == 2 and message.replace("\\", "") in err and "Traceback" not in err


def test_full_disk_is_one_line_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The disk fills up at the turntable: no half video, the checkpoint stays, --resume finishes."""
    folder, real = tmp_path / "run", images.replace_file

    def full(path: Path, data: bytes) -> None:
        if path.suffix == ".mp4":
            with disk_errors(path):
                raise OSError(errno.ENOSPC, "No space left on device")
        real(path, data)

    monkeypatch.setattr(images, "replace_file", full)
    words = [w for w in QUICK if not w.startswith("training")] + ["training.steps=5", "mesh.formats=[]"]
    code, _, err = carv3d("generate", "shapes", "a red cone", *words, "--output", str(folder), capsys=capsys)
    assert code == 2 and "the disk is full" in err and "Traceback" not in err
    assert not list(folder.glob("*.mp4")) and (folder / "checkpoints" / "step_000005").exists()
    monkeypatch.undo()
    assert carv3d("generate", "--resume", str(folder))[0] == 0 and (folder / "turntable.mp4").exists()


def test_out_of_memory_says_what_to_lower(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr("carv3d.generation.generation.load_trained", fail)
    code, _, err = carv3d("render", str(run), capsys=capsys)
    assert code == 2 and "guidance.chunk" in err and "Traceback" not in err


def test_config_lists_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    """With its meaning; and with a name, what that config resolves to."""
    code, out, _ = carv3d("config", capsys=capsys)
    assert code == 0 and "resamples: " in out and "# K," in out
    code, out, _ = carv3d("config", "shapes", "guidance.resamples=7", capsys=capsys)
    assert code == 0 and "resamples: 7" in out


@pytest.mark.parametrize("verb", ["generate", "render", "export", "evaluate", "distill", "sample", "config", "doctor"])
def test_help_has_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every verb shows how it is used."""
    code, out, _ = carv3d(verb, "--help", capsys=capsys)
    assert code == 0 and f"carv3d {verb}" in out


def test_help_does_not_wait_for_torch() -> None:
    """The command answers at once."""
    code = (
        "import sys; sys.argv=['carv3d','--help']\ntry:\n import carv3d.cli as c; c.main()\nexcept SystemExit: pass\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code + "print('torch' in sys.modules)"], capture_output=True, text=True
    )
    assert found.stdout.strip().endswith("False")


@pytest.mark.skipif(not (BUILTIN / "unet").exists(), reason="the built-in weights are not trained yet")
def test_doctor_finds_what_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = carv3d("doctor", "--json", capsys=capsys)
    assert code == 0
    assert {f["what"] for f in json.loads(out)} >= {
        "torch",
        "cuda",
        "built-in teacher",
        "video encoder",
        "disk",
    }


def test_a_verb_is_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file in the folder of verbs is found without a line elsewhere."""
    (tmp_path / "hello.py").write_text(
        "from carv3d.cli.app import app\n\n@app.command()\ndef hello() -> None:\n    print('hello')\n"
    )
    monkeypatch.setattr(cli, "__path__", [*cli.__path__, str(tmp_path)])
    before = list(cli.app.registered_commands)
    try:
        code, out, _ = carv3d("hello", capsys=capsys)
        assert code == 0 and out == "hello\n"
    finally:
        cli.app.registered_commands[:] = before
        sys.modules.pop("carv3d.cli.hello", None)


@pytest.mark.parametrize(
    ("word", "advice"),
    [
        ("+seed=3", "written seed=3"),
        ("seed = 3", "written seed=3"),
        ("seed:3", "written seed=3"),
        ("~seed=3", "written seed=3"),
        ("optimizer.betas[0]=0.8", "written optimizer.betas=[...], with all values"),
        ("guidance.scale: 7", "written guidance.scale=7"),
        ("nothing-such[1]=2", "a setting is written"),
    ],
)
def test_a_mistyped_setting_is_no_prompt(
    word: str, advice: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Though the config has a prompt, which it would replace."""
    (tmp_path / "own.yaml").write_text("base: shapes\nprompt: a red cone\n")
    run = tmp_path / "run"
    code, _, err = carv3d("generate", str(tmp_path / "own.yaml"), word, "--output", str(run), capsys=capsys)
    said = " ".join(err.split())
    assert code == 2 and advice in said and "prompt=" in said and not run.exists()


@pytest.mark.parametrize("word", ["house: a red one", "a = b in chalk", "an owl, 3:4", "E = mc2"])
def test_prompts_with_signs_in_them_are_prompts(word: str) -> None:
    assert sort_words([word]) == (None, word, [])


def test_a_damaged_tokenizer_leaves_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is read for the prompt is read before the run's folder is made."""
    make_pipeline(tmp_path / "p")
    for path in (tmp_path / "p" / "tokenizer").iterdir():
        path.write_bytes(b"\0junk")
    words = ["sd15", "a red cone", f"teacher.path={tmp_path / 'p'}", "teacher.cache_text=false", "device=cpu"]
    code, _, err = carv3d("generate", *words, "--output", str(tmp_path / "run"), capsys=capsys)
    assert code == 2 and "get the teacher's files again" in err
    assert not (tmp_path / "run").exists()


def test_a_fault_that_nobody_foresaw_is_one_line_and_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1; the traceback is in the file."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def broken(*_: object, **__: object) -> None:
        raise LookupError("a bug")

    monkeypatch.setattr("carv3d.config.describe", broken)
    code, _, err = carv3d("config", capsys=capsys)
    assert code == 1 and "carv3d failed (LookupError: a bug)" in err and "Traceback" not in err
    (kept,) = tmp_path.glob("carv3d-error-*.txt")
    assert str(kept) in err.replace("\n", "") and "Traceback" in kept.read_text() and "a bug" in kept.read_text()


def test_an_error_in_a_thread_of_a_library_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command goes on. An error of the disk is left to those who write, and meet it too."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)

    def broken(error: Exception) -> None:
        raise error

    def describe(*_: object, **__: object) -> list[object]:
        for error in (LookupError("a bug"), OSError(errno.ENOSPC, "No space left on device")):
            thread = threading.Thread(target=broken, args=[error])
            thread.start()
            thread.join()
        return []

    monkeypatch.setattr("carv3d.config.describe", describe)
    _, _, err = carv3d("config", capsys=capsys)
    assert "carv3d failed (LookupError: a bug)" in err and "Traceback" not in err and "space" not in err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.EIO, "Input/output error", "/x/y"), "/x/y: input/output error"),
        (RecursionError("maximum recursion depth exceeded"), "nested too deeply"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "not valid UTF-8"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), "lower guidance.chunk"),
    ],
)
def test_what_the_system_and_libraries_raise_is_explained(error: Exception, said: str) -> None:
    line, code = explain(error)
    assert code == 2 and said in line and "\n" not in line


LONG = "长" * 84  # 252 bytes


@pytest.mark.parametrize("verb", ["measure", "sample"])
def test_a_seed_that_torch_does_not_take_is_refused(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = carv3d(verb, ".", *["a red cone"][verb == "measure" :], "--seed", "9" * 24, capsys=capsys)
    assert code == 2 and "Invalid value for '--seed'" in err


def test_one_long_word_is_a_prompt() -> None:
    """Longer than a file name may be; with a NUL or half a character it cannot be a path either."""
    assert sort_words([LONG]) == (None, LONG, [])
    assert sort_words(["~nobody-there"]) == (None, "~nobody-there", [])


@pytest.mark.parametrize("path", [LONG, "a/" * 3000, "~nobody-there/x", "a\0b", "a\ud800b"], ids=lambda p: repr(p)[:12])
@pytest.mark.parametrize(
    "words",
    [
        ["generate", "a red cone", "--output"],
        ["generate", "--resume"],
        ["render"],
        ["export"],
        ["evaluate"],
        ["measure", "--output", "x", "--step", "1"],
        ["compare", "--prompts"],
        ["attribute", "--prompts"],
    ],
    ids=" ".join,
)
def test_what_can_be_no_path_is_one_line(
    words: list[str], path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In every place that takes one, before anything is written."""
    monkeypatch.chdir(tmp_path)
    code, _, err = carv3d(*words, path, capsys=capsys)
    assert code == 2 and err.count("error:") + err.count("Error") == 1 and "Traceback" not in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("prompt", ["a red \ud8ff cone", "a red\0 cone"])
def test_a_prompt_that_is_no_text_is_said_to_be_none(
    prompt: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bytes that are not UTF-8 reach Python as half characters."""
    code, _, err = carv3d("generate", prompt, "--output", str(tmp_path / "run"), capsys=capsys)
    assert code == 2 and "no text in UTF-8" in " ".join(err.split()) and not (tmp_path / "run").exists()
