"""The requirements of a teacher, computed before it is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from carv3d.generation.config import Config
from carv3d.system.arithmetic import network_dtype
from carv3d.teachers.families import Loader, family_of
from carv3d.teachers.memory import TeacherMemory, bytes_of, peak_of


def memory_of(folder: Path, config: Config, device: torch.device) -> TeacherMemory:
    """The memory that the teacher needs in a step of a config, from the folder's config files alone.

    Args:
        folder: of a pipeline; weights need not be there.
        config: its renders, resamples, chunk, guidance and precision.
        device: where it would run; it determines the number format.

    Raises:
        UserError: an unknown pipeline.
        ValueError, OSError: configs that cannot be read.
    """
    guidance = config.guidance
    section: Any = config.teacher
    dtype = network_dtype(getattr(torch, section.dtype), device)
    loader = _Hollow(folder, dtype, torch.device("meta"))
    family = family_of(folder)(loader, camera="none", posterior="mode")
    resamples = guidance.resamples if isinstance(guidance.resamples, int) else 4
    rows = guidance.renders * resamples
    perp_neg = config.views.perp_neg and section.view_words
    branches = 4 if perp_neg else (1 if guidance.scale == 1 else 2)
    rows = min(rows, guidance.chunk or rows) * branches
    size = section.image_size or family.image_size

    def encode() -> Any:
        return family.encode(torch.empty(guidance.renders, 3, size, size, device="meta", requires_grad=True), None)

    side = size // family.reduction
    z = torch.empty(rows, family.config.in_channels, side, side, device="meta")
    t = torch.empty(rows, device="meta", dtype=torch.long)
    embeddings = {
        n: torch.empty(rows, *shape, device="meta", dtype=dtype) for n, shape in family.embedding_shapes().items()
    }

    @torch.no_grad()
    def denoise() -> Any:
        return family.predict(z, t, embeddings, None)

    vae = getattr(family, "vae", None)
    weights = bytes_of(family.network) + (bytes_of(vae) if vae is not None else 0)
    text = max((_text_bytes(part, dtype) for part in folder.glob("text_encoder*")), default=0)
    return TeacherMemory(weights, peak_of(encode), peak_of(denoise), text)


def _text_bytes(folder: Path, dtype: torch.dtype) -> int:
    """Of a text encoder of transformers, by its config."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        network = getattr(transformers, config.architectures[0])(config)
    return bytes_of(network.to(dtype))


class _Hollow(Loader):
    """Makes networks without data."""

    def network(self, kind: Any, part: str) -> Any:
        """As `Loader.network`, without weights."""
        with torch.device("meta"):
            network = kind.from_config(kind.load_config(self.folder, subfolder=part))
        return network.to(self.dtype).eval().requires_grad_(False)
