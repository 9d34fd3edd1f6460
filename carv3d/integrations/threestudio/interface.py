"""The used parts of threestudio, and a check of them."""

from __future__ import annotations

import importlib
from typing import Any

OLDEST = (0, 2, 0)
"""The first version that loads extensions."""

NEEDED = {
    "threestudio": ("register", "find", "info", "warn"),
    "threestudio.utils.base": ("BaseObject", "BaseModule"),
    "threestudio.utils.misc": ("C", "get_rank"),
    "threestudio.models.prompt_processors.base": ("PromptProcessor",),
}
"""By module, the names that are used of it."""

OF_GUIDANCE = (
    *("configure", "update_step", "guidance_eval", "set_min_max_steps"),
    *("compute_grad_sds", "forward_unet", "encode_images", "decode_latents"),
)
"""Methods of `stable-diffusion-guidance` that are used, or replaced."""

KEYS_OF_GUIDANCE = (
    *("pretrained_model_name_or_path", "guidance_scale", "weighting_strategy", "grad_clip", "min_step_percent"),
    *("max_step_percent", "use_sjc", "var_red", "use_img_loss", "view_dependent_prompting", "half_precision_weights"),
)
"""Keys of its config that are read."""


def check() -> None:
    """Check the imported threestudio for the used parts.

    Raises:
        ImportError: names what is missing.
    """
    import threestudio

    version = getattr(threestudio, "__version__", "0")
    if version_numbers(version) < OLDEST:
        raise ImportError(f"carv3d needs threestudio 0.2.0 or newer, and this is {version}: update its checkout")
    missing = [
        f"{module}.{name}"
        for module, names in NEEDED.items()
        for name in names
        if not hasattr(importlib.import_module(module), name)
    ]
    if not missing:
        missing = _missing_of_guidance(threestudio)
    if missing:
        raise ImportError(
            f"this threestudio ({version}) has no {', '.join(missing)}, which carv3d uses: it is older or newer than "
            "what carv3d was checked with, see docs/how-to/threestudio.md"
        )


def _missing_of_guidance(threestudio: Any) -> list[str]:
    try:
        guidance = threestudio.find("stable-diffusion-guidance")
    except KeyError:
        return ["stable-diffusion-guidance"]
    keys = getattr(guidance.Config, "__dataclass_fields__", {})
    return [
        *(f"stable-diffusion-guidance.{name}" for name in OF_GUIDANCE if not hasattr(guidance, name)),
        *(f"key {key} of stable-diffusion-guidance" for key in KEYS_OF_GUIDANCE if key not in keys),
    ]


def version_numbers(version: str) -> tuple[int, ...]:
    """The first three numbers of a version."""
    return tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
