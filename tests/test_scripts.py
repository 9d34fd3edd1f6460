"""The scripts, in the smallest size that runs."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import nerfacc_kernels

SMALL = ["teacher.image_size=64", "threads=1", "scene.type=voxel_grid", "scene.resolution=16", "renderer.samples=8"]
ROOT = Path(__file__).resolve().parents[1]


def script(name: str, *words: str) -> str:
    """What it prints."""
    found = subprocess.run([sys.executable, str(ROOT / "scripts" / name), *words], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr[-2000:]
    return found.stdout


@pytest.mark.slow
def test_teacher_training_makes_a_pipeline_and_resumes(tmp_path: Path) -> None:
    """Data, autoencoder, U-Net, pipeline; more steps go on from the checkpoint; the result can be measured."""
    words = [
        "--work",
        str(tmp_path),
        "--views",
        "20",
        "--autoencoder-steps",
        "2",
        "--sample-steps",
        "2",
        "--colours",
        "1",
    ]
    script("train_builtin_teacher.py", *words, "--unet-steps", "1")
    first = load_file(tmp_path / "unet.safetensors")
    script("train_builtin_teacher.py", *words, "--unet-steps", "3")
    second = load_file(tmp_path / "unet.safetensors")
    assert int(first["step"]) == 1 and int(second["step"]) == 3
    stages = [json.loads(line)["stage"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert stages.count("data") == 16  # made once
    assert (tmp_path / "samples.png").exists() and (tmp_path / "pipeline" / "model_index.json").exists()
    figures = tmp_path / "figures.json"
    script(
        "evaluate_builtin_teacher.py",
        str(tmp_path / "pipeline"),
        "--steps",
        "2",
        "--every",
        "12",
        "--json",
        str(figures),
    )
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


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to compare on")
def test_benchmark_of_backends_without_a_gpu() -> None:
    """One line, and no error: nothing is wrong."""
    assert script("benchmark_backends.py").splitlines() == [
        "There is nothing to compare: gsplat, nerfacc and the fused hash grid need a CUDA device."
    ]


def test_benchmark_of_backends_sees_what_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the same is the same; nerfacc, on the stand-ins of its kernels, agrees; a scaled gradient is a bias."""
    found = importlib.util.spec_from_file_location("benchmark_backends", ROOT / "scripts" / "benchmark_backends.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    monkeypatch.setitem(sys.modules, "benchmark_backends", module)
    found.loader.exec_module(module)
    nerfacc_kernels.use(monkeypatch)
    cpu = torch.device("cpu")
    mine = module.volume("torch", cpu)
    same = module.compare("torch", (mine, module.volume("torch", cpu)), 8, 1, cpu)
    assert (same.difference, same.bias) == (0, 0) and same.cosine == pytest.approx(1)
    packed = module.volume("torch", cpu)
    packed[1].backend = "nerfacc"
    row = module.compare("nerfacc", (mine, packed), 8, 1, cpu)
    assert row.difference < 1e-5 and row.cosine > 0.999999 and abs(row.bias) < 1e-5
    larger = module.volume("torch", cpu)
    for parameter in larger[0].parameters():
        parameter.register_hook(lambda gradient: 1.25 * gradient)
    row = module.compare("larger", (mine, larger), 8, 1, cpu)
    assert row.bias == pytest.approx(0.25) and row.cosine == pytest.approx(1) and row.difference == 0
    table = module.markdown([row], "a device").splitlines()
    assert table[0] == "a device" and len({line.count("|") for line in table[2:]}) == 1
    assert "| larger | 8 × 8 | 0.0e+00 | 1.000000 | +2.5e-01 |" in table[-1]
