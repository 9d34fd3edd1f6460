"""Prompt files: one prompt a line."""

from __future__ import annotations

import hashlib
from pathlib import Path

from carv3d.config import find_config
from carv3d.errors import UserError
from carv3d.runs import slug

DEFAULT_PROMPTS = "prompts/compare.txt"
"""Comes with carv3d."""


def find_prompts(name: str) -> Path:
    """A prompt file by its path, or by its name among those that come with carv3d.

    Raises:
        UserError: no such file.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    try:
        if path.suffix == ".txt":
            return find_config(name)
    except UserError:
        pass
    reason = "it is a folder" if path.is_dir() else "it is not there"
    raise UserError(f"no prompt file {name}: {reason}; give a text file with one prompt a line")


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file, in its order, white space made single.

    Blank lines and lines that start with # are skipped.

    Raises:
        UserError: the file cannot be read, has no prompts, or one prompt twice (capitals make no difference).
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file in UTF-8: give one prompt a line") from None
    found: dict[str, tuple[int, str]] = {}
    for number, line in enumerate(lines, 1):
        prompt = " ".join(line.split())
        if not prompt or prompt.startswith("#"):
            continue
        first, _ = found.setdefault(prompt.casefold(), (number, prompt))
        if first != number:
            raise UserError(f"{path}: lines {first} and {number} are the same prompt {prompt!r}; remove one")
    if not found:
        raise UserError(f"{path} has no prompts: write one a line")
    return [prompt for _, prompt in found.values()]


def folder_name(prompt: str, seed: int) -> str:
    """The name of a run's folder in a comparison; different prompts have different names."""
    name = slug(prompt)
    if name.replace("-", " ") != prompt.lower():  # the slug leaves something out: another prompt may share it
        name += "-" + hashlib.sha256(prompt.casefold().encode()).hexdigest()[:8]
    return f"{name}-seed{seed}"
