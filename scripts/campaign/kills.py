"""Commands that are killed at any disk call or moment: the next one leaves what an undisturbed one does."""

from __future__ import annotations

import random
import re
import signal

from scripts.campaign.baseline import Baselines, torn
from scripts.campaign.commands import Command, contents, differences, steps_of
from scripts.campaign.disk_faults import Action, DiskFault
from scripts.campaign.server import Box, Signal, run
from scripts.campaign.trial import Trial, leftovers, outside

_OF_A_STOP = r"previews/step_\d+\.png is left over|checkpoints/\S+ is missing"
_KILLED, _STOPPED = (0, -signal.SIGKILL), (0, 1, 130, -signal.SIGTERM, -signal.SIGINT)


def trial(command: Command, rng: random.Random, box: Box, baselines: Baselines) -> Trial:
    """Kill a command once or twice, go on, and compare."""
    before = contents(command.prepare(box, baselines.prepared).work / command.result)
    found = Trial("kills", command.name)
    words = command.words
    for turn in range(1 + (rng.random() < 0.3)):
        what, disturbance, codes = _disturbance(command, rng, box, baselines)
        found.what += f"{', then' if turn else ':'} {what}"
        found.ran(words, run(words, box, disturbance, patience=command.patience), codes)
        found.wrong("half-written", *torn(box.work / command.result, before, baselines[command].contents))
        words = command.goes_on(box)
    settle(found, command, box, baselines)
    return found


def settle(found: Trial, command: Command, box: Box, baselines: Baselines) -> None:
    """Go on undisturbed, and compare the result with that of an undisturbed command."""
    words, result = command.goes_on(box), box.work / command.result
    found.ran(words, run(words, box, patience=command.patience), (0,))
    baseline = baselines[command]
    changed = differences(baseline.contents, contents(result))
    if "SIGINT" in found.what or "SIGTERM" in found.what:
        # A training that is stopped saves a checkpoint and a preview there, and an older checkpoint goes.
        changed = [said for said in changed if not re.fullmatch(_OF_A_STOP, said)]
    # A disk that fails while an old checkpoint is removed leaves it.
    changed = [said for said in changed if not re.fullmatch(r"checkpoints/\S+ is left over", said)]
    found.wrong("half-written", *changed)
    if steps_of(result) != baseline.steps:
        found.wrong("lost steps", f"{steps_of(result)} instead of {baseline.steps}")
    found.wrong("other", *(f"{name} is left" for name in leftovers(result)))
    found.wrong("outside", *outside(box, [*command.needs, command.result]))


def _disturbance(
    command: Command, rng: random.Random, box: Box, baselines: Baselines
) -> tuple[str, DiskFault | Signal, tuple[int, ...]]:
    baseline = baselines[command]
    chosen = rng.random()
    if chosen < 0.7 and baseline.calls:
        at = rng.randint(1, len(baseline.calls))
        action = rng.choice((Action.END_BEFORE, Action.END_HALF, Action.END_AFTER))
        call = baseline.calls[at - 1]
        return f"{action.name} {call}", DiskFault(action, box.work, at), _KILLED
    after = rng.uniform(0.05, baseline.seconds)
    if chosen < 0.85:
        return f"SIGKILL after {after:.1f} s", Signal(signal.SIGKILL, after), _KILLED
    number = rng.choice((signal.SIGTERM, signal.SIGINT))
    return f"{number.name} after {after:.1f} s", Signal(number, after), _STOPPED
