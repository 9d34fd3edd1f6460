"""One trial: what was done, and what was wrong with how the command lines took it."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from scripts.campaign.server import Box, Ended

PROBLEMS = ("lost steps", "traceback", "hang", "outside", "half-written", "other")
"""Kinds of problems: steps missing after a resume; an error without an explanation; no end within a minute; a file
where none belongs; a file that is neither the old nor the new one; anything else, such as a wrong exit code."""


@dataclass
class Trial:
    """What a trial did and found.

    Attributes:
        campaign: kills, disk faults, damaged files, bad inputs or odd files.
        what: the case in words.
        lines: the command lines with their exit codes, and the end of what they printed.
        problems: what was wrong, by kind.
        again: the command that repeats it.
    """

    campaign: str
    what: str
    lines: list[str] = field(default_factory=list)
    problems: dict[str, list[str]] = field(default_factory=dict)
    again: str = ""

    @property
    def right(self) -> bool:
        """Whether nothing was wrong."""
        return not self.problems

    def wrong(self, kind: str, *said: str) -> None:
        """Note problems of a kind; nothing without a text."""
        if said:
            self.problems.setdefault(kind, []).extend(said)

    def ran(self, words: Iterable[object], ended: Ended, codes: Iterable[int] = (0, 2)) -> Ended:
        """Note a command line, and judge how it ended.

        Args:
            words: the command line.
            ended: its end.
            codes: exit codes that are right.
        """
        line = " ".join(map(str, words))
        self.lines.append(f"{line[:300]} -> {ended.code} in {ended.seconds:.1f} s: {ended.said.strip()[-400:]}")
        if ended.hung:
            self.wrong("hang", line[:200])
        elif ended.unexplained:
            self.wrong("traceback", ended.said[-2000:])
        elif ended.code not in codes:
            self.wrong("other", f"exit code {ended.code}: {ended.said[-300:]}")
        elif ended.code == 2 and not ended.errors:
            self.wrong("other", f"exit code 2 without a line that explains it: {ended.said[-300:]}")
        return ended

    def as_json(self) -> dict[str, Any]:
        """For the file of what went wrong."""
        return asdict(self)


def outside(box: Box, allowed: Iterable[str]) -> list[str]:
    """Files where none belongs.

    Only the allowed names belong into the working folder, only the cache into the home folder, and nothing into the
    temporary folder and beside these three.
    """
    found = [path for path in box.work.iterdir() if path.name not in set(allowed)]
    found += [path for path in box.home.iterdir() if path.name != ".cache"]
    found += box.temporary.iterdir()
    found += [path for path in box.path.iterdir() if path not in (box.work, box.home, box.temporary)]
    return [str(path.relative_to(box.path)) for path in found]


def leftovers(path: Path) -> list[str]:
    """Temporary files below a result."""
    found = path.rglob(".*") if path.is_dir() else path.parent.glob(".*")
    return [each.name for each in found if each.name not in (".lock", ".cache")]


def generator(seed: int, *names: object) -> random.Random:
    """The random numbers of a trial: a function of the seed and of what the trial is."""
    return random.Random(f"{seed} {names}")
