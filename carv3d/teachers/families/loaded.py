"""The parts of a diffusers pipeline in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from carv3d.errors import UserError
from carv3d.teachers.families.base import Loader

_OF_TEXTS = ("text_encoder", "tokenizer")


@dataclass(frozen=True)
class LoadedParts(Loader):
    """Returns the parts of a pipeline object, as `Loader` does for a folder. The parts are shared, not copied.

    Attributes:
        pipe: the pipeline.
    """

    pipe: Any = None

    @classmethod
    def of(cls, pipe: Any, parts: Sequence[str]) -> LoadedParts:
        """The parts of a pipeline; device and number format are those of its denoiser.

        Text encoders and tokenizers may be missing: then no text can be encoded, see `embeddings_condition`.

        Raises:
            UserError: another part is missing, or the networks are on different devices.
        """
        name = type(pipe).__name__
        needed = [part for part in parts if not part.startswith(_OF_TEXTS)]
        if missing := [part for part in needed if getattr(pipe, part, None) is None]:
            raise UserError(f"the {name} has no {missing[0]}: load it whole")
        parts = [part for part in parts if getattr(pipe, part, None) is not None]
        modules = {part: found for part in parts if isinstance(found := getattr(pipe, part), torch.nn.Module)}
        places = {part: parameter.device for part, module in modules.items() for parameter in module.parameters()}
        if len(set(places.values())) > 1:
            listed = ", ".join(f"{part} on {device}" for part, device in places.items())
            raise UserError(
                f"the parts of the {name} are on different devices ({listed}): move it with pipe.to(device)"
            )
        denoiser = modules["transformer" if "transformer" in modules else "unet"]
        # A quantised network has weights of bytes; it computes in the format of its other tensors.
        dtype = next((p.dtype for p in denoiser.parameters() if p.dtype.is_floating_point), torch.float32)
        device = places[next(iter(places))]
        if device.type == "meta":  # the weights are moved to the device for each call (sequential CPU offload)
            device = torch.device(pipe._execution_device)
        return cls(Path(name), dtype, device, pipe=pipe)

    def text_encoder(self, kind: Any, part: str) -> Any:
        """See `Loader`."""
        self._check_text(part)
        return self.network(kind, part)

    def has(self, part: str) -> bool:
        """See `Loader`."""
        return getattr(self.pipe, part, None) is not None

    def network(self, kind: Any, part: str) -> Any:
        """See `Loader`; frozen and set to evaluation."""
        return getattr(self.pipe, part).eval().requires_grad_(False)

    def tokenizer(self, kind: Any, part: str) -> Any:
        """See `Loader`."""
        self._check_text(part)
        return getattr(self.pipe, part)

    def _check_text(self, part: str) -> None:
        if not self.has(part):
            raise UserError(
                f"the {self.folder} has no {part}: load it whole, or make conditions of your own embeddings with "
                "DiffusersTeacher.embeddings_condition"
            )

    def config(self, part: str) -> dict[str, Any]:
        """See `Loader`."""
        return dict(getattr(self.pipe, part).config)

    def index(self) -> dict[str, Any]:
        """See `Loader`."""
        return dict(self.pipe.config)
