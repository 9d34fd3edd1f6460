"""The scripts, in the smallest size that runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import load_file

from scripts import gpu_check
from scripts.train_builtin_teacher import main
from tests.test_benchmarks import measured


@pytest.mark.slow
def test_teacher_training_makes_a_pipeline_and_resumes(tmp_path: Path) -> None:
    """Data, autoencoder, U-Net, pipeline; more steps go on from the checkpoint; the result can be measured."""
    sizes = {"shapes": 2, "views": 20, "colours": 1, "autoencoder-steps": 1, "sample-steps": 1}
    words = ["--work", str(tmp_path), *(f"--{name}={size}" for name, size in sizes.items())]
    main([*words, "--unet-steps", "1"])
    first = load_file(tmp_path / "unet.safetensors")
    main([*words, "--unet-steps", "3"])
    second = load_file(tmp_path / "unet.safetensors")
    assert int(first["step"]) == 1 and int(second["step"]) == 3
    stages = [json.loads(line)["stage"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert stages.count("data") == 2  # made once
    assert (tmp_path / "samples.png").exists() and (tmp_path / "pipeline" / "model_index.json").exists()
    found = measured(tmp_path, "teacher", str(tmp_path / "pipeline"))
    assert float(found["teacher"].rows[0][1].rstrip("%")) <= 100


def test_the_check_of_a_gpu_can_be_tried_without_one(tmp_path: Path) -> None:
    """In small sizes on the CPU: every part of it that takes seconds, the JSON file and the tables."""
    with pytest.raises(typer.Exit) as end:
        gpu_check.main(tmp_path, device="cpu", quick=True, only="machine,backends,waits")
    assert end.value.exit_code == 0
    found = json.loads((tmp_path / "gpu_check.json").read_text())
    assert found["failed"] == [] and {row["backend"] for row in found["backends"]} >= {"numba, Gaussians"}
    assert set(found["waits"]) == {"voxel grid", "Gaussians", "hash grid"}
    text = (tmp_path / "gpu_check.md").read_text()
    assert "## waits" in text and "| Gaussians | " in text and "## backends" in text
    for table in text.split("\n\n"):
        if table.startswith("|"):
            assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_a_part_of_the_check_that_fails_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the others go on; without a GPU nothing is done."""

    def broken(_: object) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(gpu_check.Check, "waits", broken)
    with pytest.raises(typer.Exit) as end:
        gpu_check.main(tmp_path, device="cpu", quick=True, only="machine,waits")
    assert end.value.exit_code == 1
    assert "no such kernel" in (tmp_path / "gpu_check.md").read_text()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(typer.Exit) as end:
        gpu_check.main(tmp_path / "none")
    assert end.value.exit_code == 2 and not (tmp_path / "none").exists()
