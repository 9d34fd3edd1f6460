"""Failing disk calls and damaged files: each is explained or mended, and nothing is lost."""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from scripts.campaign.baseline import Baselines, torn
from scripts.campaign.commands import COMMANDS, STEPS, Command, contents, differences, steps_of
from scripts.campaign.disk_faults import Action, DiskFault
from scripts.campaign.kills import settle
from scripts.campaign.server import Box, run
from scripts.campaign.trial import Trial, outside

_NUMBERS = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.ESTALE)


def disk(command: Command, rng: random.Random, box: Box, baselines: Baselines) -> Trial:
    """Let a disk call of a command fail; then go on with a whole disk, and compare."""
    before = contents(command.prepare(box, baselines.prepared).work / command.result)
    baseline, number = baselines[command], rng.choice(_NUMBERS)
    at = rng.randint(1, max(1, len(baseline.calls)))
    action = rng.choice((Action.FAIL_ONCE, Action.FAIL_FROM_THEN))
    call = baseline.calls[at - 1] if baseline.calls else "no call"
    found = Trial("disk faults", f"{command.name}: {errno.errorcode[number]} {action.name} {call}")
    found.ran(
        command.words, run(command.words, box, DiskFault(action, box.work, at, number), patience=command.patience)
    )
    found.wrong("half-written", *torn(box.work / command.result, before, baseline.contents))
    settle(found, command, box, baselines)
    return found


def _junk(data: bytes, rng: random.Random) -> bytes:
    return rng.randbytes(max(1, min(len(data), 5000)))


def _flipped(data: bytes, rng: random.Random) -> bytes:
    if not data:
        return b"\0"
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :]


_CONTENTS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "empty": lambda data, rng: b"",
    "cut in half": lambda data, rng: data[: len(data) // 2],
    "all zeros": lambda data, rng: bytes(len(data)),
    "one bit flipped": _flipped,
    "random bytes": _junk,
    "the JSON null": lambda data, rng: b"null\n",
    "the JSON []": lambda data, rng: b"[]\n",
    "JSON of other keys": lambda data, rng: b'{"step": {"a": []}, "info": 5}\n',
    "3,000 brackets": lambda data, rng: b"[" * 3000,
    "twice": lambda data, rng: data + data,
}


def _remove(path: Path) -> None:
    path.unlink()


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/nowhere/at/all")


def _unreadable(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)  # root may read everything, but not a link to itself


_PLACES = {
    "removed": _remove,
    "a folder": _folder,
    "a pipe": _pipe,
    "a link to nowhere": _link,
    "a link to itself": _unreadable,
}

RESUME = Command(
    "resume", ["generate", "--resume", "run", f"training.steps={STEPS + 3}"], "run", needs=["run"], weight=4
)
GO_ON = Command(
    "resume distillation",
    ["distill", "--resume", "distilled", "training.steps=8"],
    "distilled",
    needs=["distilled", "teacher", "prompts.txt"],
    weight=2,
)
READERS = [RESUME, GO_ON, *(command for command in COMMANDS if not command.again)]
"""Commands that read what earlier ones have written, or go on with it."""


def subject(command: Command) -> str:
    """The result of which a file is damaged: the one that the command works with, or goes on with."""
    return next((name for name in command.needs if name in ("run", "distilled")), command.result)


def damaged(command: Command, rng: random.Random, box: Box, baselines: Baselines) -> Trial:
    """Damage a file of a finished result, and give a command that reads it."""
    command.prepare(box, baselines.prepared)
    result = box.work / subject(command)
    if not result.exists():  # what the command itself makes
        shutil.copytree(baselines.prepared / result.name, result)
    files = sorted(path for path in result.rglob("*") if path.is_file() and path.name != ".lock")
    path = rng.choice(files)
    name = path.relative_to(result).as_posix()
    kind = rng.choice([*_CONTENTS, *_PLACES])
    found = Trial("damaged files", f"{command.name}: {name} is {kind}")
    if kind in _CONTENTS:
        path.write_bytes(_CONTENTS[kind](path.read_bytes(), rng))
    else:
        _PLACES[kind](path)
    before, output = contents(result), box.work / command.result
    ended = found.ran(command.words, run(command.words, box, patience=command.patience))
    if ended.code == 2:
        found.wrong("half-written", *(f"refused, yet {said}" for said in differences(before, contents(result))))
    elif ended.code == 0 and name != "config.yaml":
        baseline = baselines[command]
        # What the command does not write stays damaged. It may say that it uses an older checkpoint: then the result is
        # that of another step, or of a training that knew its new length sooner; but no step is lost.
        if " is damaged (" not in ended.said:
            changed = differences(baseline.contents, contents(output))
            found.wrong("half-written", *(said for said in changed if not said.startswith(name)))
        if name != "metrics.jsonl" and steps_of(output) != baseline.steps:
            found.wrong("lost steps", f"{steps_of(output)} instead of {baseline.steps}")
    found.wrong("outside", *outside(box, [*command.needs, command.result]))
    return found
