"""`carv3d doctor`: the requirements of carv3d and of a config on this machine."""

from __future__ import annotations

import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from carv3d import build
from carv3d.config import Config
from carv3d.config.paths import user_path
from carv3d.errors import UserError
from carv3d.kernels.trials import examine as examine_backends
from carv3d.runs.environment import cpu_name
from carv3d.system.arithmetic import is_fast
from carv3d.system.threads import cores
from carv3d.teachers import DiffusersTeacher as Teacher
from carv3d.teachers.weights import Remote, SingleFile, configs_of, licence_of, look

_NEEDED_GB = 1.0  # a run takes about 50 MB; below this limit the disk will be full soon


@dataclass(frozen=True)
class Finding:
    """A finding: the subject, whether it is sufficient, and the result."""

    what: str
    ok: bool
    found: str


def examine(config: Config | None = None) -> list[Finding]:
    """Examine Python, torch, devices, the built-in teacher, the video encoder and the disk; and the requirements of a
    config.
    """
    output_dir = user_path(config.output_dir if config else "outputs")
    findings = [
        Finding("python", sys.version_info >= (3, 10), sys.version.split()[0]),
        Finding("torch", True, str(torch.__version__)),
        Finding("cpu", True, f"{cpu_name()}, {cores()} cores"),
        Finding("arithmetic", True, _arithmetic()),
        Finding("cuda", True, _cuda()),
        *(Finding(f"backend {backend.name}", backend.ok, backend.found) for backend in examine_backends()),
    ]
    try:
        teacher = Teacher()
        count = sum(p.numel() for p in teacher.family.network.parameters()) / 1e6
        findings.append(Finding("built-in teacher", True, f"loads, U-Net of {count:.1f} M parameters"))
    except UserError as error:
        findings.append(Finding("built-in teacher", False, str(error)))
    findings.append(_video())
    findings.append(_disk(output_dir))
    if config is not None:
        findings += needs(config)
    return findings


def needs(config: Config) -> list[Finding]:
    """Device, weights and memory of a config's run, without loading or downloading weights."""
    try:
        device = build.device(config)
        found = [Finding("device", True, str(device))]
    except UserError as error:
        device, found = torch.device("cpu"), [Finding("device", False, str(error))]
    section: Any = config.teacher
    if not getattr(section, "loads_pipeline", False):
        return found
    try:
        half = section.dtype != "float32"
        weights = look(
            section.path,
            revision=section.revision,
            mirrors=section.mirrors,
            half=half,
            pickle=section.allow_pickle,
        )
    except UserError as error:
        return [*found, Finding("weights", False, str(error))]
    if isinstance(weights, SingleFile):
        free, fits = _room(weights.folder.parent, weights.size)
        what = f"{weights.size / 1e9:.2f} GB in {weights.file}; its first use makes a pipeline folder of it in"
        found.append(Finding("weights", fits, f"{what} {weights.folder.parent}, which has {free / 1e9:.1f} GB free"))
        return [*found, Finding("memory", True, "told once the file has been used")]
    if isinstance(weights, Remote):
        found.append(_remote(weights))
        try:
            folder = configs_of(weights)
        except UserError as error:
            return [*found, Finding("memory", False, str(error))]
    else:
        folder, licence = weights.folder, licence_of(weights.folder) or "not stated"
        found.append(Finding("weights", True, f"{weights.size / 1e9:.2f} GB in {folder}; licence: {licence}"))
    return [*found, _memory(folder, config, device)]


def _remote(weights: Remote) -> Finding:
    from huggingface_hub.constants import HF_HUB_CACHE

    licence = weights.licence or "not stated"
    what = f"{weights.id} at {weights.revision[:8]}, {weights.size / 1e9:.2f} GB; licence: {licence}"
    if weights.here:
        return Finding("weights", True, f"{what}; downloaded")
    cache = Path(HF_HUB_CACHE)
    free, fits = _room(cache, weights.size)
    return Finding("weights", fits, f"{what}; to be downloaded to {cache}, which has {free / 1e9:.1f} GB free")


def _room(folder: Path, size: int) -> tuple[int, bool]:
    """Bytes free for a folder that need not exist, and whether `size` fits."""
    absolute = folder.absolute()
    free = shutil.disk_usage(next(place for place in [absolute, *absolute.parents] if place.exists())).free
    return free, free > size


def _memory(folder: Path, config: Config, device: torch.device) -> Finding:
    from carv3d.generation.requirements import scene_memory
    from carv3d.teachers.requirements import memory_of

    try:
        memory, scene = memory_of(folder, config, device), scene_memory(config, device)
    except (UserError, OSError, ValueError, KeyError) as error:
        return Finding("memory", False, f"cannot be told: {error}")
    if device.type == "cuda":
        free, where = torch.cuda.mem_get_info(device)[0], "on the GPU"
    else:
        free, where = psutil.virtual_memory().available, "of memory"
    step = memory.weights + scene.kept + scene.render + memory.encode + memory.denoise
    before = memory.weights + scene.kept + memory.text
    sizes = {"weights": memory.weights, "scene": scene.kept, "renders": scene.render, "encoding": memory.encode}
    parts = " + ".join(f"{size / 2**30:.2f} {name}" for name, size in (sizes | {"denoising": memory.denoise}).items())
    guidance, fits = config.guidance, free > max(step, before)
    what = f"{step / 2**30:.2f} GiB at R = {guidance.renders}, K = {guidance.resamples} ({parts})"
    if before > step:
        what += f"; {before / 2**30:.2f} while the largest text encoder is there, before the first step"
    hint = ""
    if not fits and before < free:
        hint = ": lower guidance.chunk, guidance.renders, renderer.samples or the cameras' size, or use float16"
    elif not fits:
        hint = ": use teacher.dtype=float16, or a teacher with a smaller text encoder"
    return Finding("memory", fits, f"{what}; {free / 2**30:.1f} GiB free {where}{hint}")


def _arithmetic() -> str:
    """The number formats of runs on this machine."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if is_fast(torch.bfloat16, device):
        return f"bfloat16 and float32 on the {device.type}"
    return f"float32 on the {device.type}, which has no bfloat16 arithmetic; precision=auto chooses float32"


def _cuda() -> str:
    if not torch.cuda.is_available():
        return "none; runs go to the CPU"
    free, total = torch.cuda.mem_get_info()
    return f"{torch.cuda.get_device_name()}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"


def _video() -> Finding:
    try:
        import imageio_ffmpeg

        return Finding("video encoder", True, f"ffmpeg {imageio_ffmpeg.get_ffmpeg_version()}")
    except (ImportError, RuntimeError) as error:
        return Finding("video encoder", False, f"{error}: pip install imageio-ffmpeg")


def _disk(output_dir: Path) -> Finding:
    folder = output_dir
    while not folder.exists():
        folder = folder.absolute().parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return Finding("disk", False, f"cannot write to {folder.absolute()}: {error.strerror}")
    free = shutil.disk_usage(folder).free / 1e9
    return Finding("disk", free > _NEEDED_GB, f"{free:.1f} GB free for {output_dir}")
