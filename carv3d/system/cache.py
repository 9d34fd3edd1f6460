"""The cache folder, for files that can be made again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """$CARV3D_CACHE, or carv3d in the user's cache folder ($XDG_CACHE_HOME, ~/.cache). It need not exist."""
    if own := os.environ.get("CARV3D_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "carv3d"
