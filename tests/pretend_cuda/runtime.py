"""`torch.cuda` of the pretended device, and its installation."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from tests.pretend_cuda import native

native.load()

import torch  # noqa: E402
import torch._dynamo  # noqa: E402  # its tables want torch's own functions
from torch.optim import optimizer  # noqa: E402

from tests.pretend_cuda.generators import CpuGenerator, CudaGenerator, default  # noqa: E402
from tests.pretend_cuda.recorder import note  # noqa: E402
from tests.pretend_cuda.tensors import CudaTensor, Dispatch  # noqa: E402

FREE, TOTAL = 60 * 2**30, 80 * 2**30


class Stream:
    """A stream or event."""

    cuda_stream = 0

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def record(self, *_: Any) -> None:
        """Nothing waits."""

    wait_stream = record

    def synchronize(self) -> None:
        """The host waits."""
        note("wait", "synchronize")

    def elapsed_time(self, _: Any) -> float:
        """Milliseconds."""
        return 1.0


class Device:
    """The context of a device."""

    def __init__(self, _: Any) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: Any) -> None:
        pass


def _always(value: Any) -> Callable[..., Any]:
    return lambda *_, **__: value


_FUNCTIONS: dict[str, Any] = {
    "is_available": _always(True),
    "is_initialized": _always(True),
    "is_bf16_supported": _always(True),
    "device_count": _always(1),
    "current_device": _always(0),
    "get_device_name": _always("Pretended GPU"),
    "get_device_capability": _always((9, 0)),
    "mem_get_info": _always((FREE, TOTAL)),
    "memory_allocated": _always(0),
    "max_memory_allocated": _always(0),
    **dict.fromkeys(
        ("_lazy_init", "init", "set_device", "empty_cache", "ipc_collect", "reset_peak_memory_stats"), _always(None)
    ),
    "_is_in_bad_fork": _always(False),
    "synchronize": lambda *_: note("wait", "synchronize"),
    "manual_seed": default.manual_seed,
    "manual_seed_all": default.manual_seed,
    "get_rng_state": lambda *_: default.get_state(),
    "set_rng_state": lambda state, *_: default.set_state(state),
    "Event": Stream,
    "Stream": Stream,
    "current_stream": lambda *_: Stream(),
    "device": Device,
}

_mode = Dispatch()


def install() -> None:
    """From here on there is one CUDA device, in this process and to its end."""
    if torch.version.cuda is not None or str(torch._C._get_accelerator()) != "cuda":
        raise RuntimeError("a pretended CUDA device is for a torch without CUDA")
    torch.Generator = CudaGenerator  # type: ignore[misc]
    for module in [m for m in sys.modules.values() if isinstance(m, ModuleType)]:  # which have imported the name
        if module.__dict__.get("Generator") is CpuGenerator:
            module.Generator = CudaGenerator  # type: ignore[attr-defined]
    for name, function in _FUNCTIONS.items():
        setattr(torch.cuda, name, function)
    original = torch.Tensor.pin_memory
    torch.Tensor.pin_memory = lambda self, *_: self.clone() if self.device.type == "cpu" else original(self)  # type: ignore[method-assign,assignment]
    torch._C._set_only_lift_cpu_tensors(True)
    torch.__future__.set_swap_module_params_on_conversion(True)  # `module.to` keeps its parameters
    optimizer._foreach_supported_types.append(CudaTensor)  # as on CUDA, tensors of one kind are updated together
    _mode.__enter__()
