"""All that carv3d can only know on a GPU, in one command: `python -m scripts.gpu_check --out FOLDER`.

It builds gsplat's and nerfacc's kernels, runs the tests that are marked `gpu`, draws by every backend beside torch,
runs every family of teachers on tiny pipelines, counts the waits of a step, trains and judges the first object, and
times steps at the sizes of Stable Diffusion 2.1 and XL with random weights. FOLDER gets `gpu_check.json` and
`gpu_check.md`. A part that fails is recorded, and the others go on; the command then ends with code 1.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import typer

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from carv3d.config import find_config, load, validate  # noqa: E402
from carv3d.runs.environment import cpu_name, device_name  # noqa: E402
from carv3d.training.trainer import Trainer  # noqa: E402

GIB = 2**30
SIZES = ("sd21-base", "sdxl")


class Check:
    """One run of the command.

    Attributes:
        work: a folder for runs and weights.
        device: where everything runs.
        quick: small sizes, so that the script itself can be tried without a GPU.
    """

    def __init__(self, work: Path, device: torch.device, quick: bool) -> None:
        self.work, self.device, self.quick = work, device, quick

    def machine(self) -> dict[str, Any]:
        """What it runs on."""
        import diffusers

        found: dict[str, Any] = {
            "device": device_name(self.device) if self.device.type == "cuda" else cpu_name(),
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "torch": str(torch.__version__),
            "cuda": torch.version.cuda,
            "diffusers": diffusers.__version__,
            "python": sys.version.split()[0],
        }
        if self.device.type == "cuda":
            free, total = torch.cuda.mem_get_info()
            found |= {"memory": total / GIB, "free": free / GIB, "capability": torch.cuda.get_device_capability()}
        return found

    def kernels(self) -> dict[str, Any]:
        """Build and try gsplat's, nerfacc's and our own kernels, each in a process of its own, at the same time."""
        started = time.perf_counter()
        names = {"gsplat": "renderers", "nerfacc": "renderers", "fused_hash_grid": "scenes"}
        running = {}
        for name, package in names.items():
            module = name if name.startswith("fused") else f"{name}_backend"
            code = f"import torch, carv3d.{package}.{module} as m; print(m.problem(torch.device('{self.device}')))"
            running[name] = subprocess.Popen(
                [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        found: dict[str, Any] = {}
        for name, process in running.items():
            said = process.communicate()[0].strip().splitlines() or ["(nothing)"]
            found[name] = {
                "problem": None if said[-1] == "None" else said[-1],
                "seconds": time.perf_counter() - started,
            }
        return found

    def marked(self) -> dict[str, Any]:
        """The tests that are marked `gpu`."""
        words = [sys.executable, "-m", "pytest", "-m", "gpu", "-rfEs", "--tb=short", "-n", "4"]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        lines = done.stdout.strip().splitlines()
        (self.work / "tests.txt").write_text(done.stdout + done.stderr)
        failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
        if done.returncode:
            raise AssertionError("\n".join([*lines[-1:], *failed]))
        return {"summary": lines[-1], "skipped": [line for line in lines if line.startswith("SKIPPED")]}

    def backends(self) -> list[dict[str, Any]]:
        """Every backend beside torch: agreement and times."""
        from scripts.benchmarks.backends import compare_all

        sizes, rounds = ((16,), 1) if self.quick else ((64, 256, 512), 10)
        table, _ = compare_all(self.device, sizes, rounds)
        return [dict(zip(table.columns, row, strict=True)) for row in table.rows]

    def families(self) -> dict[str, Any]:
        """A run of every family on a tiny pipeline, from its config to a mesh, and on from its checkpoint."""
        from tests.pipelines import MAKERS

        configs = {"sd": "sd21-base", "sdxl": "sdxl", "sd3": "sd3", "deepfloyd": "deepfloyd"}
        running = {}
        for family, config in configs.items():
            folder = MAKERS[family](self.work / "tiny" / family)
            words = ["generate", config, "a thing", f"teacher.path={folder}", "teacher.mirrors=[]", "training.steps=4"]
            words += [f"device={self.device.type}", "cameras.height=32", "cameras.width=32", "renderer.samples=32"]
            words += ["mesh.resolution=32", "mesh.texture_size=64", "mesh.faces=500", "turntable.frames=4"]
            words += ["turntable.size=64", "training.denoising_preview_every=2", "guidance.resamples=2"]
            words += ["scene.log2_table=12", "scene.levels=4"] if self.quick else []
            running[family] = (self.run(*words, "--output", str(self.work / "families" / family)), config)
        found: dict[str, Any] = {}
        for family, (process, _) in running.items():
            found[family] = self.done(process)
        again = {
            family: self.run("generate", "--resume", str(self.work / "families" / family), "training.steps=6")
            for family, answer in found.items()
            if answer["code"] == 0
        }
        for family, process in again.items():
            found[family]["resumed"] = self.done(process)
        failed = {f: a for f, a in found.items() if a["code"] or a.get("resumed", {}).get("code")}
        if failed:
            raise AssertionError(json.dumps(failed, indent=1))
        return found

    def run(self, *words: str) -> subprocess.Popen[str]:
        """Start `carv3d WORDS`."""
        command = [sys.executable, "-m", "carv3d", *words]
        env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        return subprocess.Popen(
            command, cwd=self.work, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    @staticmethod
    def done(process: subprocess.Popen[str]) -> dict[str, Any]:
        """What a command said last, its exit code."""
        said = process.communicate()[0]
        return {"code": process.returncode, "said": said[-1500:] if process.returncode else said[-200:]}

    def first_object(self) -> dict[str, Any]:
        """The main job with its defaults, on this device: seconds, and the figures of `carv3d evaluate`."""
        found: dict[str, Any] = {}
        for scene in ("shapes", "gaussians"):
            name, started = f"first-{scene}", time.perf_counter()
            words = ["generate", scene, "a red mushroom", f"device={self.device.type}", "seed=0"]
            words += ["training.steps=4", "mesh.resolution=24", "turntable.frames=4"] if self.quick else []
            answer = self.done(self.run(*words, "--output", str(self.work / "objects" / name)))
            if answer["code"]:
                raise AssertionError(answer["said"])
            folder = self.work / "objects" / name
            rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
            found[scene] = {"seconds": time.perf_counter() - started, "training": rows[-1]["seconds"]}
            found[scene] |= {"steps": len(rows), "evaluation": self.done(self.run("evaluate", str(folder)))["said"]}
        return found

    def waits(self) -> dict[str, Any]:
        """For each kind of scene, how often a step makes the CPU wait for the GPU, and where."""
        found: dict[str, Any] = {}
        for name, words in {
            "voxel grid": ["shapes"],
            "Gaussians": ["gaussians"],
            "hash grid": ["shapes", "scene.type=hash_grid", "regularisers.orientation=0.1"],
        }.items():
            config = load(find_config(words[0]), ["prompt=a red mushroom", f"device={self.device.type}", *words[1:]])
            validate(config)
            trainer = Trainer(config)
            for _ in range(3):
                trainer.step()
            steps, seen = (1 if self.quick else 10), Counter[str]()
            if self.device.type == "cuda":
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    torch.cuda.set_sync_debug_mode("warn")
                    try:
                        for _ in range(steps):
                            trainer.step()
                    finally:
                        torch.cuda.set_sync_debug_mode("default")
                seen.update(f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchroniz" in str(w.message))
            torch.cuda.synchronize() if self.device.type == "cuda" else None
            started = time.perf_counter()
            for _ in range(steps):
                trainer.step()
            torch.cuda.synchronize() if self.device.type == "cuda" else None
            found[name] = {
                "ms": 1e3 * (time.perf_counter() - started) / steps,
                "waits": sum(seen.values()) / steps,
                "where": {place: count / steps for place, count in seen.most_common()},
            }
        return found

    def sizes(self) -> list[dict[str, Any]]:
        """Steps at real sizes, with random weights: times, share of the device's peak, memory."""
        from scripts.benchmarks.harness import Bench
        from scripts.benchmarks.steps import at_size
        from scripts.random_teacher import make

        every = []
        for name in SIZES[: 1 if self.quick else None]:
            with torch.device(self.device):
                folder = make(name, self.work / f"{name}{'-tiny' * self.quick}", divide=10 if self.quick else 1)
            table = at_size(name, Bench("steps", [], self.device, self.work, 0.0, 0, self.quick, []))
            row: dict[str, Any] = {
                "model": name,
                "steps": [dict(zip(table.columns, r, strict=True)) for r in table.rows],
            }
            row["doctor"] = self.done(self.run("doctor", name, f"teacher.path={folder}", "teacher.mirrors=[]"))["said"]
            words = ["teacher.image_size=64", "cameras.height=64", "cameras.width=64"] if self.quick else []
            row["late"] = self.late(name, folder, words)
            print(table.markdown())
            every.append(row)
        return every

    def late(self, name: str, folder: Path, words: list[str]) -> dict[str, Any]:
        """The peak memory and time of a whole step half-way, when all regularisers are on; and which dtype keeps."""
        own = [f"teacher.path={folder}", "teacher.mirrors=[]", "teacher.cache_text=false", "prompt=a thing", *words]
        own += [] if self.device.type == "cuda" else ["device=cpu", "teacher.dtype=float32"]
        config = load(find_config(name), own)
        validate(config)
        trainer = Trainer(config)
        found: dict[str, Any] = {}
        for fraction in (0.0, 0.5):
            trainer.step_count = int(fraction * config.training.steps)
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            trainer.step()
            started = time.perf_counter()
            for _ in range(3):
                trainer.step()
            torch.cuda.synchronize() if self.device.type == "cuda" else None
            found[f"{fraction:.0%}"] = {
                "ms": 1e3 * (time.perf_counter() - started) / 3,
                "memory": torch.cuda.max_memory_allocated() / GIB if self.device.type == "cuda" else None,
            }
        return found


def markdown(found: dict[str, Any]) -> str:
    """The findings as tables, for the docs: a section for each part, a row for each thing that it looked at."""
    lines = [f"`{found['command']}`", ""]
    for name, part in found.items():
        if name in ("command", "failed"):
            continue
        lines += [f"## {name.replace('_', ' ')}", ""]
        rows = part if isinstance(part, list) else [{"": key} | _flat(value) for key, value in part.items()]
        rows = [_flat(row) for row in rows]
        columns = list(dict.fromkeys(column for row in rows for column in row))
        lines += [f"| {' | '.join(columns)} |", f"| {' | '.join('---' for _ in columns)} |"]
        lines += [f"| {' | '.join(_cell(row.get(column, '')) for column in columns)} |" for row in rows] + [""]
    return "\n".join(lines)


def _flat(value: Any) -> dict[str, Any]:
    """A row: mappings within become columns of their own."""
    if not isinstance(value, dict):
        return {"found": value}
    row: dict[str, Any] = {}
    for key, inner in value.items():
        row |= (
            {f"{key} {name}".strip(): one for name, one in inner.items()} if isinstance(inner, dict) else {key: inner}
        )
    return row


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.split()).replace("|", "\\|")[:300]


def main(
    out: Path = Path("outputs/gpu_check"),
    device: str = "cuda",
    quick: bool = False,
    only: str = "",
    work: Path | None = None,
) -> None:
    """Run every part and write what was found."""
    if device == "cuda" and not torch.cuda.is_available():
        print("there is no CUDA device here: nothing was checked", file=sys.stderr)
        raise typer.Exit(2)
    out.mkdir(parents=True, exist_ok=True)
    check = Check((work or out / "work").resolve(), torch.device(device), quick)
    check.work.mkdir(exist_ok=True, parents=True)
    parts: dict[str, Callable[[], Any]] = {
        name: getattr(check, name)
        for name in ("machine", "kernels", "marked", "backends", "waits", "families", "first_object", "sizes")
        if not only or name in only.split(",")
    }
    found: dict[str, Any] = {"command": " ".join(sys.argv), "failed": []}
    for name, part in parts.items():
        started = time.perf_counter()
        try:
            found[name] = part()
        except Exception:  # one part's failure must not hide the others' figures
            found["failed"].append(name)
            found[name] = {"error": traceback.format_exc()[-4000:]}
        took = time.perf_counter() - started
        print(f"== {name}: {took:.0f} s{' FAILED' if name in found['failed'] else ''}", flush=True)
        print(json.dumps(found[name], indent=1, default=str)[:2500], flush=True)
        (out / "gpu_check.json").write_text(json.dumps(found, indent=1, default=str) + "\n")
        (out / "gpu_check.md").write_text(markdown(found))
    raise typer.Exit(bool(found["failed"]))


if __name__ == "__main__":
    typer.run(main)
