"""What undisturbed command lines leave, and how many disk calls they make."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from scripts.campaign.commands import COMMANDS, Command, contents, steps_of, write_inputs
from scripts.campaign.disk_faults import Action, DiskFault
from scripts.campaign.server import Box, run


@dataclass(frozen=True)
class Baseline:
    """An undisturbed command.

    Attributes:
        contents: of its result, see `contents`.
        steps: in its metrics.
        calls: its disk calls in the working folder, with the names of the files.
        seconds: that it took.
    """

    contents: dict[str, str]
    steps: list[int]
    calls: list[str]
    seconds: float


class Baselines:
    """Baselines of commands, each made when it is first asked for, and the results that other commands need.

    Args:
        folder: new.
        faults: whether disk calls can be counted.
    """

    def __init__(self, folder: Path, *, faults: bool) -> None:
        self.prepared = folder / "prepared"
        self.prepared.mkdir(parents=True)
        self._folder, self._faults = folder, faults
        self._known: dict[str, Baseline] = {}
        write_inputs(self.prepared)

    def __getitem__(self, command: Command) -> Baseline:
        if command.name not in self._known:
            self._known[command.name] = self._make(command)
        return self._known[command.name]

    def provide(self, names: list[str]) -> Path:
        """See that results which others need are among the prepared things."""
        for name in names:
            if not (self.prepared / name).exists():
                _ = self[next(command for command in COMMANDS if command.result == name)]
        return self.prepared

    def _make(self, command: Command) -> Baseline:
        prepared = self.provide(list(command.needs))
        box = command.prepare(Box(self._folder / f"baseline-{len(self._known)}"), prepared)
        log = box.path / "calls"
        ended = run(command.words, box, self._log(box, log) if self._faults else None, patience=command.patience)
        result = box.work / command.result
        if ended.code or not result.exists():
            raise RuntimeError(f"carv3d {' '.join(command.words)} fails undisturbed: {ended.said[-2000:]}")
        if not (self.prepared / command.result).exists() and result.is_dir():
            shutil.copytree(result, self.prepared / command.result)
        calls = log.read_text().splitlines() if log.exists() else []
        return Baseline(
            contents(result), steps_of(result), [call.replace(f"{box.work}/", "") for call in calls], ended.seconds
        )

    def _log(self, box: Box, log: Path) -> DiskFault:
        return DiskFault(Action.LOG, box.work, log=log)


_GROWING = ("metrics.jsonl", "cache/")


def torn(path: Path, before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Files of a stopped command's result that are neither the old nor the new ones, and meshes of two exports.

    Files that grow as a command goes on, and temporary ones, are left out.
    """
    found = contents(path) if path.exists() else {}
    names = [name for name in found if name in after and not name.startswith(_GROWING) and not name.endswith("/")]
    strange = [f"{name} is neither old nor new" for name in names if found[name] not in (before.get(name), after[name])]
    mesh = [name for name in names if name.startswith("mesh/")]
    mixed = not any(all(found[name] == of.get(name) for name in mesh) for of in (before, after))
    return [*strange, *(["mesh/ has files of two exports"] if mixed else [])]
