"""The scripts, in the smallest size that runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

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
