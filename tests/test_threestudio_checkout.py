"""carv3d and folders of threestudio: its extension is put into a checkout, the pictures of a run are judged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from carv3d.errors import UserError
from carv3d.images import read_png, write_png
from carv3d.integrations.threestudio import install as extension
from carv3d.integrations.threestudio.install import install, remove
from tests.pipelines import make_clip
from tests.test_cli import carv3d

# ------------------------------------------------------------------------------------------- the verb


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the verb looks at of a checkout. Its threestudio can be imported, and has carv3d's guidances to register."""
    folder = tmp_path / "threestudio"
    (folder / "custom").mkdir(parents=True)
    (folder / "launch.py").write_text("")
    package = folder / "threestudio"
    guidance = package / "models" / "guidance" / "stable_diffusion_guidance.py"
    guidance.parent.mkdir(parents=True)
    guidance.write_text("\n".join(f"def {name}(self): ..." for name in extension.OF_GUIDANCE))
    (package / "__init__.py").write_text('__version__ = "0.2.3"\nraise RuntimeError("no CUDA here")\n')
    return folder


def test_install_and_remove(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A threestudio that does not import here gets the extension all the same, and a word that it was not tried."""
    code, _, err = carv3d("threestudio", str(checkout), capsys=capsys)
    assert code == 0 and "was not tried" in err and "RuntimeError: no CUDA here" in err and "next: cd" in err
    folder = checkout / "custom" / "threestudio-carv3d"
    assert {"__init__.py", "README.md", "configs"} == {path.name for path in folder.iterdir()}
    mine = folder / "configs" / "carv-builtin.yaml"
    mine.write_text("mine: 1\n")
    (folder / "README.md").write_text("old")
    code, _, err = carv3d("threestudio", str(checkout), capsys=capsys)
    assert code == 0 and "left as it is" in err and mine.read_text() == "mine: 1\n"
    assert "carv-guidance" in (folder / "README.md").read_text()
    code, _, err = carv3d("threestudio", str(checkout), "--remove", capsys=capsys)
    assert code == 0 and [path for path in folder.rglob("*") if path.is_file()] == [mine] and "left, because" in err
    mine.unlink()
    shutil.rmtree(folder)
    install(checkout)
    assert remove(checkout).kept == [] and not folder.exists()
    assert carv3d("threestudio", str(checkout), "--remove", capsys=capsys)[0] == 2


def test_checkouts_that_do_not_fit(checkout: Path, tmp_path: Path) -> None:
    """Nothing is written."""
    with pytest.raises(UserError, match=r"is no threestudio checkout, it has no launch\.py"):
        install(tmp_path)
    with pytest.raises(UserError, match="is no threestudio checkout"):
        remove(tmp_path)
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho \"carv3d: No module named 'carv3d'\" >&2\nexit 1\n")
    python.chmod(0o755)
    with pytest.raises(UserError, match=r"has no carv3d \(No module named 'carv3d'\): install it there"):
        install(checkout, str(python))
    python.write_text("#!/bin/sh\necho 'interface: this threestudio (0.2.3) has no BaseObject' >&2\nexit 1\n")
    with pytest.raises(UserError, match=r"does not work with .* has no BaseObject"):
        install(checkout, str(python))
    with pytest.raises(UserError, match="does not run"):
        install(checkout, str(tmp_path / "nothing"))
    guidance = checkout / "threestudio/models/guidance/stable_diffusion_guidance.py"
    guidance.write_text(guidance.read_text().replace("def guidance_eval", "def evaluate"))
    with pytest.raises(UserError, match="without guidance_eval"):
        install(checkout)
    (checkout / "threestudio" / "__init__.py").write_text('__version__ = "0.1.0"\n')
    with pytest.raises(UserError, match=r"is threestudio 0\.1\.0, which loads no extensions: git pull"):
        install(checkout)
    assert not list((checkout / "custom").iterdir())


def test_a_folder_of_somebody_else_stays(checkout: Path) -> None:
    other = checkout / "custom" / "threestudio-carv3d"
    other.mkdir()
    (other / "__init__.py").write_text("print('mine')\n")
    for verb in (install, remove):
        with pytest.raises(UserError, match="was not made by this command"):
            verb(checkout)
    assert (other / "__init__.py").read_text() == "print('mine')\n"


# --------------------------------------------------------------------------------------- the way back


def test_evaluate_a_threestudio_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its newest test pictures, of which the left square is the colours; the prompt from its config."""
    clip, trial = make_clip(tmp_path / "clip"), tmp_path / "outputs" / "trial"
    g = torch.Generator().manual_seed(1)
    for step, count in ((100, 1), (1000, 3)):
        folder = trial / "save" / f"it{step}-test"
        folder.mkdir(parents=True)
        for view in range(count):
            write_png(torch.rand(3, 16, 48, generator=g), folder / f"{view}.png")
    code, _, err = carv3d("evaluate", str(trial), capsys=capsys)
    assert code == 2 and "is judged by CLIP: give --clip" in err
    code, _, err = carv3d("evaluate", str(trial / "save"), "--clip", str(clip), capsys=capsys)
    assert code == 2 and "give --prompt" in err
    (trial / "configs").mkdir()
    (trial / "configs" / "parsed.yaml").write_text("system:\n  prompt_processor:\n    prompt: a fox\n")
    found = []
    for place in (trial, trial / "save", trial / "save" / "it1000-test"):
        code, out, err = carv3d("evaluate", str(place), "--clip", str(clip), "--json", capsys=capsys)
        assert code == 0, err
        found.append(json.loads(out))
    assert found[0] == found[1] == found[2] and found[0]["views"] == 3 and found[0]["prompt"] == "a fox"
    assert 0 <= found[0]["clip_score"] <= 100
    words = ["--clip", str(clip), "--prompt", "a dragon", "--json"]
    code, out, _ = carv3d("evaluate", str(trial), *words, capsys=capsys)
    other = json.loads(out)
    assert code == 0 and other["prompt"] == "a dragon" and other["clip_score"] != found[0]["clip_score"]
    # The colours alone are judged: other normals and opacity beside them change nothing.
    for view in range(3):
        picture = read_png(trial / "save" / "it1000-test" / f"{view}.png")
        picture[:, :, 16:] = 0
        write_png(picture, trial / "save" / "it1000-test" / f"{view}.png")
    code, out, _ = carv3d("evaluate", str(trial), "--clip", str(clip), "--json", capsys=capsys)
    assert json.loads(out) == found[0]
    write_png(torch.rand(3, 16, 40, generator=g), trial / "save" / "it1000-test" / "9.png")
    code, _, err = carv3d("evaluate", str(trial), "--clip", str(clip), capsys=capsys)
    assert code == 2 and "40 x 16 pixels" in err
    (trial / "save" / "it1000-test" / "9.png").write_bytes(b"no picture")
    code, _, err = carv3d("evaluate", str(trial), "--clip", str(clip), capsys=capsys)
    assert code == 2 and "cannot be read as a picture" in err
