"""The files of a pipeline that a teacher needs, by name."""

from __future__ import annotations

import re
from collections.abc import Sequence

from carv3d.errors import UserError

INDEX = "model_index.json"

USED = re.compile("(vae|unet|transformer|text_encoder|tokenizer|scheduler)(_[23])?")
"""The parts that a teacher may need; others are safety checkers, exports to other formats, and the like."""

# Excludes other precisions, moving averages, and other frameworks.
_WEIGHTS = re.compile(
    r"/(diffusion_pytorch_model|pytorch_model|model)(\.fp16)?(-\d+-of-\d+)?(\.fp16)?\.(safetensors|bin)$"
)
_TRUST = "set teacher.allow_pickle=true if you trust where they came from"


def wanted(names: Sequence[str], *, half: bool, pickle: bool) -> list[str]:
    """Of a repository's files, those that a teacher needs: configs, tokenizers, and one set of weights a part.

    Raises:
        UserError: it is no pipeline, or a part has only pickled weights, which are not allowed.
    """
    if INDEX not in names:
        raise UserError(f"it is no diffusers pipeline: it has no {INDEX}")
    found = [INDEX]
    for part in sorted({name.partition("/")[0] for name in names if "/" in name}):
        if USED.fullmatch(part):
            mine = [name for name in names if name.startswith(f"{part}/") and name.count("/") == 1]
            found += [name for name in mine if name.endswith((".json", ".txt", ".model")) and ".index." not in name]
            found += _weights(part, mine, half, pickle)
    return found


def _weights(part: str, names: Sequence[str], half: bool, pickle: bool) -> list[str]:
    """One set of a part's weights, with the index of its shards; empty if it has none."""
    known = [name for name in names if _WEIGHTS.search(name)]
    safe = [name for name in known if name.endswith(".safetensors")]
    if known and not safe and not pickle:
        raise UserError(f"its {part} has pickled weights alone, which can run any code: use another model, or {_TRUST}")
    of_half = [name for name in safe or known if ".fp16" in name]
    plain = [name for name in safe or known if ".fp16" not in name]
    chosen = of_half if (half and of_half) or not plain else plain
    kind = ".safetensors.index." if safe else ".bin.index."
    index = [name for name in names if kind in name and (".fp16" in name) == (chosen is of_half)]
    return [*chosen, *index] if len(chosen) > 1 else chosen


def missing_weights(names: Sequence[str], pickle: bool) -> str:
    """The problem with a part's files as weights; "" if there is none."""
    if any(name.endswith(".safetensors") for name in names):
        return ""
    if not any(name.endswith(".bin") for name in names):
        return "holds no .safetensors weights: get the teacher's files again"
    if pickle:
        return ""
    return f"holds pickled .bin weights alone, which can run any code: get .safetensors ones, or {_TRUST}"
