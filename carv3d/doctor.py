"""Whether this machine has what carv3d needs."""

from __future__ import annotations

import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from carv3d.backends import examine as examine_backends
from carv3d.errors import UserError
from carv3d.generation import cores
from carv3d.runs.environment import cpu_name
from carv3d.teachers import DiffusersTeacher

_NEEDED_GB = 1.0  # a run takes some 50 MB; below this something else will fill the disk soon


@dataclass(frozen=True)
class Finding:
    """One thing looked at: what, whether it will do, and what was found."""

    what: str
    ok: bool
    found: str


def examine(output_dir: Path = Path("outputs")) -> list[Finding]:
    """Look at Python, torch, devices, the built-in teacher, the video encoder and the disk."""
    findings = [
        Finding("python", sys.version_info >= (3, 10), sys.version.split()[0]),
        Finding("torch", True, str(torch.__version__)),
        Finding("cpu", True, f"{cpu_name()}, {cores()} cores"),
        Finding("cuda", True, _cuda()),
        *(Finding(f"backend {backend.name}", backend.ok, backend.found) for backend in examine_backends()),
    ]
    try:
        teacher = DiffusersTeacher()
        count = sum(p.numel() for p in teacher.unet.parameters()) / 1e6
        findings.append(Finding("built-in teacher", True, f"loads, U-Net of {count:.1f} M parameters"))
    except UserError as error:
        findings.append(Finding("built-in teacher", False, str(error)))
    findings.append(_video())
    findings.append(_disk(output_dir))
    return findings


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
