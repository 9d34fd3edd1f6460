"""The cache folder, for files that can be made again."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from carv3d.config.paths import user_path
from carv3d.errors import UserError


def cache_folder() -> Path:
    """$CARV3D_CACHE, or carv3d in the user's cache folder ($XDG_CACHE_HOME, ~/.cache). It need not exist."""
    if own := os.environ.get("CARV3D_CACHE"):
        return user_path(own)
    try:
        return user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "carv3d"
    except UserError:  # a user without a home folder
        return Path(tempfile.gettempdir()) / f"carv3d-cache-{os.getuid()}"
