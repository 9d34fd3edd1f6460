"""The keys that carv3d adds to a guidance's config, and how keys are checked."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from carv3d.config.components import config_of
from carv3d.config.values import validate
from carv3d.errors import UserError
from carv3d.objectives import Objective


@dataclass
class CarvOptions:
    """Keys of `system.guidance` besides those that threestudio has; see `carv3d.Carv`."""

    resamples: int = 8  # K, (t, eps) draws a render; 1 with proposal=uniform, strata=none is threestudio's own
    proposal: str = "importance"  # or uniform
    strata: str = "render"  # or none, global
    coupling: str = "antithetic"  # or independent, zero_sum
    chunk: int = 0  # most draws in one call of the network; 0 for all
    objective: Any = "sds"  # or csd, package.Name; or a mapping of type and the objective's own keys


_VSD = "use carv-vsd-guidance for variational score distillation"
_MVDREAM = "the guidance of MVDream judges four views together with a network of its own, which this one cannot serve"
# Keys of other guidances, and their replacements.
_ELSEWHERE = {
    "pretrained_model_name_or_path_lora": _VSD,
    "guidance_scale_lora": _VSD,
    "lora_cfg_training": _VSD,
    "camera_condition_type": "this guidance is not told the camera",
    "model_name": _MVDREAM,
    "n_view": _MVDREAM,
    "cond_image_path": "this guidance is told a text, and not a picture as that of zero123",
    "lower_memory_load": "use carv-teacher-guidance for DeepFloyd IF",
}


def check_keys(name: str, kind: type[Any], given: Mapping[str, Any] | None) -> None:
    """Refuse keys that a guidance does not have.

    Args:
        name: of the guidance.
        kind: its `Config`.
        given: `system.guidance`.

    Raises:
        ValueError: one line that names the key and what to do.
    """
    known = [f.name for f in fields(kind)]
    for key in given or {}:
        if key in known:
            continue
        near = difflib.get_close_matches(str(key), known, 1)
        hint = _ELSEWHERE.get(str(key)) or (f"did you mean {near[0]}?" if near else f"its keys are {', '.join(known)}")
        raise ValueError(f"system.guidance.{key} is no key of {name}: {hint}")


def objective_of(given: Any) -> Objective:
    """The objective that `system.guidance.objective` describes.

    Raises:
        ValueError: an unknown objective or key, or a value out of range.
    """
    keys = dict(given) if isinstance(given, Mapping) or hasattr(given, "keys") else {"type": given}
    try:
        kind = config_of("objective", str(keys.pop("type", "sds")))
        known = [f.name for f in fields(kind) if f.name != "type"]
        if wrong := [key for key in keys if key not in known]:
            raise ValueError(
                f"system.guidance.objective.{wrong[0]} is no key of {kind.__name__}: its keys are "
                f"{', '.join(known) or 'none'}"
            )
        made: Objective = kind(**keys)
        validate(made)
    except UserError as error:
        raise ValueError(f"system.guidance.objective: {error}") from None
    return made


def refuse_state(objective: Objective) -> None:
    """Refuse a prepared objective that has its own parameters.

    Raises:
        ValueError: threestudio's checkpoints would lose them.
    """
    if objective.state_dict():
        raise ValueError(
            f"system.guidance.objective: {type(objective).__name__} trains a network of its own, which threestudio's "
            "checkpoints would not have; use carv-vsd-guidance for variational score distillation"
        )
