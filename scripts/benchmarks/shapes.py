"""Objects of the built-in world, generated and measured: one prompt each, or an equal share of them with --quick.

Each prompt is an ordinary run in a folder of OUT/runs, kept if it is finished, with its figures beside it; a picture
of the folder's name shows every object beside the true one. A word without `=` is the config (default shapes), whose
name the table has.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from carv3d.cameras import orbit
from carv3d.generation.generation import load_trained
from carv3d.generation.results import render_views
from carv3d.images import sheet, write_png
from carv3d.mesh import load
from carv3d.prompts.files import find_prompts, read_prompts
from carv3d.renderers.mesh import render_mesh
from carv3d.runs import Run, replace_file, slug
from carv3d.shapes import parse, reference
from scripts.benchmarks.harness import Bench, Table

KEYS = ("psnr", "iou", "mesh_psnr", "mesh_iou")
_SMALL = ["training.steps=3", "mesh.resolution=32", "turntable.frames=2", "turntable.size=64", "turntable.sheet=64"]
_JOBS = 2  # prompts at a time, a thread each


def measure(bench: Bench) -> Iterator[tuple[str, Table]]:
    """Of every prompt, and the means."""
    config = next((word for word in bench.words if "=" not in word), "shapes")
    overrides = [word for word in bench.words if "=" in word]
    prompts = read_prompts(find_prompts("prompts/shapes.txt"))
    if bench.quick:
        prompts, overrides = prompts[:1], [*_SMALL, *overrides]
    overrides = [f"device={bench.device}", f"seed={bench.seed}", *overrides]
    folder = bench.folder(config, overrides)
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(_JOBS) as pool:
        rows = list(pool.map(lambda prompt: one(prompt, folder, config, overrides, bench), prompts))
    write_png(gallery(folder, prompts), folder.with_suffix(".png"))
    every = Table(["prompt", "rank", "PSNR", "IoU", "mesh PSNR", "mesh IoU"])
    for prompt, row in zip(prompts, rows, strict=True):
        every.rows.append([prompt, row["retrieval_rank"], *cells([row])])
    found = [sum(row[key] == 1 for row in rows) for key in ("retrieval_rank", "mesh_retrieval_rank")]
    means = Table([f"{len(rows)} prompts", "retrieved", "mesh retrieved", "PSNR", "IoU", "mesh PSNR", "mesh IoU"])
    means.rows.append([config, *found, *cells(rows)])
    yield f"{config}-means", means
    yield config, every


def cells(rows: list[dict[str, Any]]) -> list[str]:
    """Means of the figures."""
    means = {key: sum(float(row[key]) for row in rows) / len(rows) for key in KEYS}
    return [f"{means[key]:.1f}" if "psnr" in key else f"{means[key]:.3f}" for key in KEYS]


def one(prompt: str, folder: Path, config: str, overrides: list[str], bench: Bench) -> dict[str, Any]:
    """Run (or finish) and evaluate one prompt, each in a process of its own."""
    path = folder / slug(prompt)
    words = ["generate", config, prompt, "threads=1", *overrides, "--output", str(path)]
    if (path / "environment.json").exists():
        words = ["generate", "--resume", str(path)]
    if not (path / "mesh" / "mesh.ply").exists():
        carv3d(*words)
    kept = path / "evaluation.json"
    if not kept.exists():
        replace_file(kept, carv3d("evaluate", str(path), "--json").encode())
    figures: dict[str, Any] = json.loads(kept.read_text())
    bench.say(f"{prompt}: {figures['psnr']:.1f} dB")
    return figures


def carv3d(*words: str) -> str:
    """What the command prints, in a process of its own with one thread."""
    command, environment = [sys.executable, "-m", "carv3d", *words], os.environ | {"OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return found.stdout.decode()


def gallery(folder: Path, prompts: list[str]) -> torch.Tensor:
    """Four pictures a prompt, three prompts a row: the scene from two sides, the mesh, the true object."""
    cameras = orbit(2, 20.0, start=35.0, height=128, width=128)
    tiles = []
    for prompt in prompts:
        with Run.open(folder / slug(prompt)) as run:
            trained = load_trained(run)
            rgb, _, _ = render_views(trained.scene, trained.renderer, cameras)
            mesh = render_mesh(load(run.mesh / "mesh.glb"), cameras[:1], supersample=2)
        tiles += [rgb, mesh.rgb, reference(parse(prompt), cameras[:1])[0]]
    return sheet(torch.cat(tiles), 12)
