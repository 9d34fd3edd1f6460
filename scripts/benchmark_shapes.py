"""Generate and measure a list of prompts of the built-in world.

    python scripts/benchmark_shapes.py --name carv
    python scripts/benchmark_shapes.py --name sds guidance.resamples=1 guidance.proposal=uniform training.steps=900
    python scripts/benchmark_shapes.py --name gaussians --config gaussians --jobs 1

Each prompt is an ordinary run in OUT/NAME, kept if it is already there and finished by `--resume` if it was cut
off; its figures are kept beside it. The means go to OUT/NAME.json, a picture of every object beside the true one to
OUT/NAME.png.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from carv3d.cameras import orbit
from carv3d.generation.generation import load_trained
from carv3d.generation.results import render_views
from carv3d.images import sheet, write_png
from carv3d.mesh import load
from carv3d.prompts.files import read_prompts
from carv3d.renderers.mesh import render_mesh
from carv3d.runs import Run, replace_file, slug
from carv3d.shapes import parse, reference

PROMPTS = Path(__file__).resolve().parents[1] / "configs" / "prompts" / "shapes.txt"


def one(prompt: str, folder: Path, config: str, overrides: list[str], threads: int) -> dict[str, object]:
    """Run (or finish) and evaluate one prompt in a process of its own, each part once."""
    carv3d = [sys.executable, "-m", "carv3d"]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    path = folder / slug(prompt)
    command = [*carv3d, "generate", config, prompt, f"threads={threads}", *overrides, "--output", str(path)]
    if (path / "environment.json").exists():
        command = [*carv3d, "generate", "--resume", str(path)]
    if not (path / "mesh" / "mesh.ply").exists():
        subprocess.run(command, check=True, env=environment, stderr=subprocess.DEVNULL)
    kept = path / "evaluation.json"
    if not kept.exists():
        command = [*carv3d, "evaluate", str(path), "--json"]
        found = subprocess.run(command, check=True, env=environment, capture_output=True, text=True)
        replace_file(kept, found.stdout.encode())
    figures: dict[str, object] = json.loads(kept.read_text())
    print(json.dumps(figures), flush=True)
    return figures


def gallery(folder: Path, prompts: list[str]) -> torch.Tensor:
    """Four pictures a prompt, three prompts a row: the scene from two sides, the mesh, the truth."""
    cameras = orbit(2, 20.0, start=35.0, height=128, width=128)
    tiles = []
    for prompt in prompts:
        with Run.open(folder / slug(prompt)) as run:
            trained = load_trained(run)
            rgb, _, _ = render_views(trained.scene, trained.renderer, cameras)
            mesh = render_mesh(load(run.mesh / "mesh.glb"), cameras[:1], supersample=2)
        tiles += [rgb, mesh.rgb, reference(parse(prompt), cameras[:1])[0]]
    return sheet(torch.cat(tiles), 12)


def main() -> None:
    """Run all prompts, average, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--name", default="carv", help="of this setting")
    parser.add_argument("--config", default="shapes", help="a shipped config or a file")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmark"))
    parser.add_argument("--prompts", type=Path, default=PROMPTS)
    parser.add_argument("--jobs", type=int, default=2, help="prompts at a time")
    parser.add_argument("--threads", type=int, default=1, help="torch threads a prompt")
    options = parser.parse_args()
    prompts = read_prompts(options.prompts)
    folder: Path = options.out / options.name
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        rows = list(pool.map(lambda p: one(p, folder, options.config, options.overrides, options.threads), prompts))

    def mean(key: str) -> float:
        return sum(float(str(row[key])) for row in rows) / len(rows)

    summary = {
        "name": options.name,
        "config": options.config,
        "overrides": options.overrides,
        "prompts": len(rows),
        "retrieved": sum(row["retrieval_rank"] == 1 for row in rows),
        "mesh_retrieved": sum(row["mesh_retrieval_rank"] == 1 for row in rows),
        **{key: round(mean(key), 4) for key in ("psnr", "iou", "mesh_psnr", "mesh_iou", "seconds", "steps")},
    }
    print(json.dumps(summary, indent=1))
    (options.out / f"{options.name}.json").write_text(json.dumps({"summary": summary, "rows": rows}, indent=1) + "\n")
    write_png(gallery(folder, prompts), options.out / f"{options.name}.png")


if __name__ == "__main__":
    main()
