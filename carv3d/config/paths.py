"""Paths that a user gives."""

from __future__ import annotations

import os
from pathlib import Path

from carv3d.errors import UserError

_NAME, _PATH = 245, 4096  # bytes of a name, less than the 255 of file systems because endings are added; of a path


def user_path(text: Path | str) -> Path:
    """A path as a user writes it, with `~` for the home folder; it may not exist.

    Raises:
        UserError: no file can have this path.
    """
    written = str(text)
    path, shown = Path(written), written if len(written) <= 60 else f"{written[:60]}..."
    if "\0" in written:
        raise UserError(f"{shown!r} is no path: a path has no NUL character")
    try:
        encoded = os.fsencode(written)
    except UnicodeEncodeError:
        raise UserError(f"{shown!r} is no path: it has characters that no file name has") from None
    if len(encoded) >= _PATH or any(len(os.fsencode(part)) > _NAME for part in path.parts):
        raise UserError(f"{shown!r} is no path: a name has at most {_NAME} bytes, a path {_PATH}")
    try:
        return path.expanduser()
    except RuntimeError:
        who = path.parts[0]
        raise UserError(f"{shown!r}: the home folder {who} is not known: write the whole path") from None


def is_user_file(text: Path | str) -> bool:
    """Whether a word is the path of a file; a word that can be no path is not."""
    try:
        return user_path(text).is_file()
    except (UserError, OSError):
        return False
