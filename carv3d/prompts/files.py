"""Prompt files with one prompt a line, and prompts that are looked up in such a file: `lib:fox`."""

from __future__ import annotations

import re
from pathlib import Path

from carv3d.config import find_config
from carv3d.config.paths import user_path
from carv3d.errors import UserError

DEFAULT_PROMPTS = "prompts/compare.txt"
"""Comes with carv3d: what `carv3d compare` compares by."""

LIBRARY = "prompts/library.txt"
"""Comes with carv3d: prompts for teachers that know more than the built-in world."""


def find_prompts(name: str) -> Path:
    """A prompt file by its path, or by its name among those that come with carv3d.

    Raises:
        UserError: no such file.
    """
    path = user_path(name)
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
    """The prompts of a file, in its order, with single spaces.

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
    if "".join(lines).lstrip()[:1] in ("{", "["):
        raise UserError(f"{path} is JSON: give a text file with one prompt a line")
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


def look_up(prompt: str, library: str = LIBRARY) -> str:
    """The prompt that `lib:WORDS` stands for: the only one of a library with all the words. Other prompts are
    returned unchanged.

    Args:
        prompt: with or without "lib:".
        library: see `find_prompts`.

    Raises:
        UserError: no prompt has the words, or several have.
    """
    if not prompt.startswith("lib:"):
        return prompt
    words = re.findall(r"[^\s_]+", prompt[4:].casefold())
    prompts = read_prompts(find_prompts(library))
    found = [one for one in prompts if all(word in one.casefold() for word in words)]
    exact = [one for one in found if set(words) <= set(one.casefold().split())]
    if len(exact or found) == 1:
        return (exact or found)[0]
    if not found:
        raise UserError(f"{prompt}: no prompt of {library} has these words; `lib:a` lists some of them")
    some = "; ".join(repr(one) for one in found[:8])
    raise UserError(f"{prompt}: {len(found)} prompts of {library} have these words ({some}): give more words")
