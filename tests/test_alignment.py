"""CLIP score and R-precision: against transformers' own pipeline, on known directions, and through `evaluate`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from carv3d.errors import UserError
from carv3d.evaluation.clip import Clip
from tests.pipelines import make_clip, make_pipeline
from tests.test_cli import QUICK, carv3d

PROMPTS = ["a fox", "a red cab", "an egg"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clip") / "tiny")


def test_directions_are_those_of_transformers(folder: Path) -> None:
    """Its image processor, tokenizer and whole model, on pictures that are resized."""
    rgb = torch.rand(4, 3, 80, 80, generator=torch.Generator().manual_seed(0))
    rgb = torch.nn.functional.avg_pool2d(rgb, 9, 1, 4)  # smooth, as two ways of resizing differ in noise
    model, tokenizer = CLIPModel.from_pretrained(folder), CLIPTokenizer.from_pretrained(folder)
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    pictures = [(255 * one).round().to(torch.uint8).permute(1, 2, 0).numpy() for one in rgb]
    words = tokenizer(PROMPTS, padding="max_length", max_length=16, truncation=True, return_tensors="pt")
    with torch.no_grad():
        theirs = model(**words, **processor(pictures, return_tensors="pt"))
    clip = Clip(str(folder))
    torch.testing.assert_close(clip.texts(PROMPTS), theirs.text_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(clip.pictures(rgb), theirs.image_embeds, atol=5e-3, rtol=0)


def test_alignment_of_known_directions(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two views are nearest to the prompt, two to others; opposite directions count as 0."""
    clip = Clip(str(folder))
    views = torch.tensor([[1.0, 0, 0], [0.8, 0.6, 0], [0.6, 0.8, 0], [-0.6, 0, 0.8]])
    monkeypatch.setattr(clip, "pictures", lambda _: views)
    monkeypatch.setattr(clip, "texts", lambda texts: torch.eye(3)[: len(texts)])
    found = clip.alignment(torch.zeros(4, 3, 8, 8), "a fox", PROMPTS)
    assert found.clip_score == pytest.approx(100 * (1 + 0.8 + 0.6) / 4) and found.r_precision == 0.5
    assert clip.alignment(torch.zeros(4, 3, 8, 8), "A Fox", ["a fox"]).r_precision == 1  # it is not its own rival


def test_models_that_cannot_be_used(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no CLIP model at 'nowhere/such'.*give --clip a folder"):
        Clip("nowhere/such", download=False)
    with pytest.raises(UserError, match="no CLIP model"):
        Clip(str(make_pipeline(tmp_path / "teacher")))


def test_evaluate_by_clip(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A prompt without a true object has figures with a CLIP model, and one clear line without."""
    teacher = make_pipeline(tmp_path / "teacher")
    words = [word for word in QUICK if not word.startswith("teacher")]
    run = tmp_path / "run"
    options = [f"teacher.path={teacher}", *words, "training.steps=2", "mesh.resolution=24"]
    assert carv3d("generate", "shapes", "a fox", *options, "--output", str(run))[0] == 0
    code, _, err = carv3d("evaluate", str(run), capsys=capsys)
    assert code == 2 and "there is nothing to judge 'a fox' by" in err and "--clip" in err
    code, out, _ = carv3d("evaluate", str(run), "--clip", str(folder), "--json", capsys=capsys)
    found = json.loads(out)
    assert code == 0 and 0 <= found["clip_score"] <= 100 and 0 <= found["r_precision"] <= 1
    assert ("mesh_clip_score" in found) == any((run / "mesh").glob("mesh.*")) and "psnr" not in found
    code, _, err = carv3d("evaluate", str(run), "--prompts", "prompts/shapes.txt", capsys=capsys)
    assert code == 2 and "give --clip too" in err
