"""The scripts that make and measure the built-in teacher, in the smallest size that runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

SMALL = ["teacher.image_size=64", "threads=1", "scene.type=voxel_grid", "scene.resolution=16", "renderer.samples=8"]
ROOT = Path(__file__).resolve().parents[1]


def script(name: str, *words: str) -> None:
    found = subprocess.run([sys.executable, str(ROOT / "scripts" / name), *words], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr[-2000:]


@pytest.mark.slow
def test_teacher_training_makes_a_pipeline_and_resumes(tmp_path: Path) -> None:
    """Data, autoencoder, U-Net, pipeline; more steps go on from the checkpoint; the result can be measured."""
    words = ["--work", str(tmp_path), "--views", "20", "--autoencoder-steps", "2"]
    script("train_builtin_teacher.py", *words, "--unet-steps", "1")
    first = load_file(tmp_path / "unet.safetensors")
    script("train_builtin_teacher.py", *words, "--unet-steps", "3")
    second = load_file(tmp_path / "unet.safetensors")
    assert int(first["step"]) == 1 and int(second["step"]) == 3
    stages = [json.loads(line)["stage"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert stages.count("data") == 16  # made once
    assert (tmp_path / "samples.png").exists() and (tmp_path / "pipeline" / "model_index.json").exists()
    figures = tmp_path / "figures.json"
    script("evaluate_builtin_teacher.py", str(tmp_path / "pipeline"), "--steps", "2", "--json", str(figures))
    assert 0 <= json.loads(figures.read_text())["retrieval"] <= 1


@pytest.mark.slow
def test_benchmark_of_real_sizes(tmp_path: Path) -> None:
    """With networks a tenth as wide: every setting is timed, and reuse is compared with the naive loop."""
    words = ["sd15", "--device", "cpu", "--divide", "10", "--work", str(tmp_path), "--rounds", "1", *SMALL]
    words += ["cameras.height=16", "cameras.width=16"]
    script("benchmark.py", *words, "--grid", "1,1", "1,2", "--naive", "2", "--json", str(tmp_path / "b.json"))
    found = json.loads((tmp_path / "b.json").read_text())[0]
    assert [(row["R"], row["K"]) for row in found["rows"]] == [(1, 1), (1, 2), (0, 2)]
    assert all(row["total"] >= row["denoise"] > 0 for row in found["rows"])
    assert found["flops_of_a_draw"] > 1e8 and found["matmul_peak"] > 1e9
