"""What tests of comparisons share."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from carv3d.comparison import plan
from carv3d.comparison.calibration import Cost
from carv3d.comparison.plan import Plan, make_plan, methods_of
from carv3d.config import Config, find_config, load

TINY = [
    *("teacher.type=exact", "teacher.views=20", "teacher.neighbours=4", "device=cpu", "threads=1"),
    *("scene.resolution=12", "cameras.height=16", "cameras.width=16", "renderer.samples=12"),
    *("training.steps=20", "guidance.resamples=4"),
    *(
        "turntable.frames=4",
        "turntable.size=32",
        "turntable.sheet=32",
        "mesh.resolution=24",
        "mesh.texture_size=64",
        "mesh.faces=400",
    ),
]
QUIET = Console(quiet=True)


def tiny(*overrides: str) -> Config:
    return load(find_config("shapes"), [*TINY, *overrides])


def known_times(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps take known times; the list grows by one whenever they are timed."""
    calls: list[int] = []

    def fake(configs: list[Config], *_: object) -> list[Cost]:
        calls.append(len(configs))
        draws = [
            c.guidance.renders * (2.5 if c.guidance.resamples == "auto" else c.guidance.resamples) for c in configs
        ]
        return [Cost(*parts) for parts in zip([0.1, 0.15, 0.15, 0.2], draws, strict=False)]

    monkeypatch.setattr(plan, "step_costs", fake)
    return calls


def planned(folder: Path, *overrides: str, prompts: tuple[str, ...] = ("a red cone",), **given: object) -> Plan:
    asked = methods_of([("shapes", tiny(*overrides))])
    options = {"seeds": 1, "clip": "", "equal": "time", "jobs": 1} | given
    return make_plan(asked, list(prompts), folder=folder, **options)  # type: ignore[arg-type]
