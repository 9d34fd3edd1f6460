"""Versions, machine and command of a run."""

from __future__ import annotations

import platform
import subprocess
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch


def environment(command: str, device: torch.device | None = None) -> dict[str, Any]:
    """Versions, machine, command line and start time, for `environment.json` and `carv3d doctor`."""
    return {
        "command": command,
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "carv3d": _version(),
        "git_revision": git_revision(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "device": device_name(device),
        "cpu": cpu_name(),
        "platform": platform.platform(),
    }


def _version() -> str | None:
    try:
        return metadata.version("carv3d")
    except metadata.PackageNotFoundError:
        return None


def device_name(device: torch.device | None) -> str:
    """The name of a GPU, or "cpu"."""
    return torch.cuda.get_device_name(device) if device is not None and device.type == "cuda" else "cpu"


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def git_revision() -> str | None:
    """The commit of the clone that carv3d runs from, with "+" if files differ from it; None if no clone."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        run = [
            subprocess.run(
                ["git", "-C", str(root), *command], capture_output=True, text=True, timeout=10, check=True
            ).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return run[0] + ("+" if run[1] else "")
