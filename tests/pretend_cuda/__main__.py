"""`python -m tests.pretend_cuda FOLDER`: runs carv3d on the pretended device, and prints what happened as JSON.

A process of its own, because the device must be there before torch is imported. For each case: `error`, or the waits
and copies of a step and where they are. `tests/test_pretend_cuda.py` reads it.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.pretend_cuda.runtime import install

install()

import torch  # noqa: E402

from carv3d import cli  # noqa: E402
from carv3d.config import find_config, load, validate  # noqa: E402
from carv3d.training.engine import fetch  # noqa: E402
from carv3d.training.trainer import Trainer  # noqa: E402
from tests.pipelines import MAKERS  # noqa: E402
from tests.pretend_cuda.generators import CudaGenerator  # noqa: E402
from tests.pretend_cuda.recorder import record  # noqa: E402

PROGRAM = str(Path(cli.__file__).parents[1])
STEPS = 2
SMALL = ["cameras.height=16", "cameras.width=16", "renderer.samples=8", "guidance.resamples=2", "device=cuda"]
BUILTIN = [*SMALL, "prompt=a red cone"]
GRID = ["scene.type=hash_grid", "scene.log2_table=8", "scene.levels=3"]
TINY_PIPELINE = [*SMALL, *GRID, "prompt=a view", "teacher.mirrors=[]", "teacher.cache_text=false"]

SCENES = {
    "voxel grid": ("shapes", [*BUILTIN, "scene.resolution=12"]),
    "hash grid": ("shapes", [*BUILTIN, *GRID, "regularisers.orientation=1"]),
    "Gaussians": ("gaussians", [*BUILTIN, "scene.count=60"]),
    "Gaussians that densify": (
        "gaussians",
        [*BUILTIN, "scene.count=60", "scene.degree=1", "scene.densify.every=1", "scene.densify.begin=0"],
    ),
    "background that is learned": ("shapes", [*BUILTIN, "scene.resolution=12", "renderer.background=learned"]),
    "exact teacher": ("shapes", [*BUILTIN, "scene.resolution=12", "teacher.type=exact", "teacher.views=9"]),
}
FAMILIES = {"sd": "sd21-base", "sdxl": "sdxl", "sd3": "sd3", "deepfloyd": "deepfloyd"}


def steps(config: str, words: list[str]) -> dict[str, Any]:
    """Some steps after the first, and the fetch of their figures."""
    trainer = trainer_of(config, words)
    trainer.step_count = round(0.3 * trainer.config.training.steps) | 1  # no refresh of the occupancy is due
    trainer.step()
    with record(PROGRAM) as seen:
        logs = [trainer.step() for _ in range(STEPS)]
    figures = fetch(logs)[-1]
    devices = {str(tensor.device) for tensor in [*trainer.scene.parameters(), *trainer.renderer.parameters()]}
    counted = {kind: seen.count(kind) / STEPS for kind in ("wait", "copy to device", "copy to host")}  # type: ignore[arg-type]
    return {"devices": sorted(devices), "figures": figures, "table": seen.table(), **counted}


def trainer_of(config: str, words: list[str]) -> Trainer:
    """A trainer of a config."""
    found = load(find_config(config), words)
    validate(found)
    return Trainer(found)


def same_as_the_cpu(config: str, words: list[str]) -> dict[str, Any]:
    """Largest difference of a step's gradients with the same random numbers on the CPU and the device, and the norm of
    the largest gradient: that of the rotations of round Gaussians is zero but for rounding.
    """
    results = []
    CudaGenerator.as_the_cpu = True
    try:
        for device in ("cpu", "cuda"):
            trainer = trainer_of(config, [*words, "renderer.backend=torch", f"device={device}"])
            trainer.step()
            results.append([p.grad.cpu() for p in trainer.scene.parameters() if p.grad is not None])
    finally:
        CudaGenerator.as_the_cpu = False
    differences = [float((a - b).norm()) for a, b in zip(*results, strict=True)]
    return {"difference": max(differences), "norm": max(float(a.norm()) for a in results[0])}


def verb(*words: str) -> dict[str, Any]:
    """A command: its exit code, and what it printed."""
    out, sys.argv = io.StringIO(), ["carv3d", *words]
    code = 0
    with contextlib.redirect_stdout(out):
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
    if code not in (0, None):
        raise RuntimeError(f"exit code {code}")
    return {"code": code}


def commands(folder: Path) -> dict[str, list[str]]:
    """Every verb that computes; `compare` starts processes of its own, which do not have the device."""
    run, distilled = str(folder / "run"), str(folder / "distilled")
    (folder / "prompts.txt").write_text("a view\nanother\n")
    few = ["training.steps=2", "training.preview_every=0", "turntable.frames=2", "turntable.size=16"]
    made = [*few, "turntable.sheet=16", "mesh.resolution=12", "mesh.texture_size=32", "mesh.faces=200"]
    matching = ["matching.renders=2", "matching.resamples=2", "fake.updates=1", "fake.batch=2", "device=cuda"]
    items = ["data.items=12", "draws.count=2", "projection.dimension=16", "queries.steps=2", "rows=8", "top=3"]
    return {
        "generate": ["generate", "gaussians", *BUILTIN, "scene.count=60", *made, "--output", run],
        "resume": ["generate", "--resume", run, "training.steps=4"],
        "render": ["render", run],
        "export": ["export", run],
        "evaluate": ["evaluate", run],
        "measure": ["measure", run, "--budget", "40", "--resamples", "1,2", "--renders", "1", "--precision", "9"],
        "attribute": ["attribute", "a red cube", "device=cuda", *items, "--output", str(folder / "found")],
        "distill": [
            "distill",
            f"teacher.path={folder / 'sd'}",
            "teacher.view_words=true",
            f"prompts={folder / 'prompts.txt'}",
            *matching,
            "training.steps=2",
            "training.preview_every=0",
            "--output",
            distilled,
        ],
        "sample": ["sample", distilled, "a view", "--count", "1", "--output", str(folder / "samples.png")],
        "doctor": ["doctor", "sd21-base", f"teacher.path={folder / 'sd'}", *SMALL, *GRID],
    }


def main(folder: Path) -> None:
    """Run all cases."""
    torch.set_num_threads(1)
    for name in FAMILIES:
        MAKERS[name](folder / name)
    cases: dict[str, Callable[[], dict[str, Any]]] = {}
    for name, (config, words) in SCENES.items():
        cases[f"steps: {name}"] = lambda config=config, words=words: steps(config, words)  # type: ignore[misc]
    for name, config in FAMILIES.items():
        pipeline = [*TINY_PIPELINE, f"teacher.path={folder / name}"]
        cases[f"steps: {config}"] = lambda config=config, words=pipeline: steps(config, words)  # type: ignore[misc]
    for name in ("voxel grid", "Gaussians"):
        cases[f"same: {name}"] = lambda case=SCENES[name]: same_as_the_cpu(*case)  # type: ignore[misc]
    for name, words in commands(folder).items():
        cases[f"verb: {name}"] = lambda words=words: verb(*words)  # type: ignore[misc]
    found = {}
    for name, case in cases.items():
        try:
            found[name] = case()
        except Exception as error:
            found[name] = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc(limit=-8)}
    print(json.dumps(found))


if __name__ == "__main__":
    logging.disable()
    main(Path(sys.argv[1]))
