"""Keys that the configs of all verbs have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from carv3d.config.components import ComponentConfig, component
from carv3d.config.keys import NOT_BLANK, Component, Key


@dataclass
class CommonConfig:
    """Where a verb runs, and its teacher."""

    device: Annotated[
        str,
        Key("the device of tensors and networks", pattern=r"auto|cpu|cuda(:\d+)?", allowed="auto, cpu, cuda or cuda:N"),
    ] = "auto"
    threads: Annotated[int, Key("torch threads on the CPU; 0: one for each core", ge=0, le=1024)] = 0
    output_dir: Annotated[
        str, Key("folder of all results; each run makes its own folder in it", pattern=NOT_BLANK, allowed="a folder")
    ] = "outputs"
    force: Annotated[bool, Key("accept prompts that the built-in teacher does not know")] = False
    teacher: Annotated[ComponentConfig, Component("teacher")] = component("teacher", "diffusers")
