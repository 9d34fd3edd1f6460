"""carv3d: text-to-3D training with compute-aware variance reduction.

from carv3d import Carv, from_pipeline
carv = Carv(from_pipeline(pipe), resamples=8)
loss, estimate = carv(latents, condition)
loss.backward()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Carv", "__version__", "from_pipeline"]

if TYPE_CHECKING:
    from carv3d.loss import Carv
    from carv3d.teachers import DiffusersTeacher

    from_pipeline = DiffusersTeacher.from_pipeline


def __getattr__(name: str) -> Any:
    # Imported lazily, so that `carv3d --help` does not import torch.
    if name == "Carv":
        from carv3d.loss import Carv

        return Carv
    if name == "from_pipeline":
        from carv3d.teachers import DiffusersTeacher

        return DiffusersTeacher.from_pipeline
    raise AttributeError(name)
