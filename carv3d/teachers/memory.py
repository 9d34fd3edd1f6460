"""The peak memory of a teacher, computed before it is loaded: its step runs on tensors without data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of live tensors while it is entered, on all devices.

    Attributes:
        peak: the largest sum, bytes. It excludes workspaces of libraries and gaps of the allocator.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and count its outputs."""
        self._note((args, kwargs), lambda _: 0)  # inputs were counted before, and views take no memory
        found = func(*args, **(kwargs or {}))
        self._note(found, lambda storage: storage.nbytes())
        for key in [key for key, (reference, _) in self._live.items() if reference.expired()]:
            del self._live[key]
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return found

    def _note(self, tensors: Any, size: Callable[[torch.UntypedStorage], int]) -> None:
        for tensor in tree_leaves(tensors):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                reference = StorageWeakRef(storage)
                self._live.setdefault(reference.cdata, (reference, size(storage)))


class _FusedAttention(TorchFunctionMode):
    """Attention as GPUs compute it: the whole matrix of scores is never in memory."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace the attention of tensors without data."""
        if func is torch.nn.functional.scaled_dot_product_attention and args[0].is_meta:
            return args[0] * 1
        return func(*args, **(kwargs or {}))


def peak_of(run: Callable[[], Any]) -> int:
    """The peak bytes of a computation, beyond those before it."""
    with PeakMemory() as memory, _FusedAttention():
        run()
    return memory.peak


def bytes_of(network: nn.Module) -> int:
    """The bytes of a network's parameters and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in [*network.parameters(), *network.buffers()])


@dataclass(frozen=True)
class TeacherMemory:
    """Bytes that a teacher needs on its device.

    Attributes:
        weights: of the denoiser and the encoder of pictures; text encoders are released before the first step.
        encode: of encoding R pictures with what the backward pass keeps.
        denoise: of one call of the denoiser with all its rows.
        text: of the largest text encoder, which is on the device, one at a time, before the first step.
    """

    weights: int
    encode: int
    denoise: int
    text: int = 0

    @property
    def peak(self) -> int:
        """The graph of the encoder is alive while the denoiser runs; text encoders are released before."""
        return self.weights + max(self.encode + self.denoise, self.text)
