"""Generators of the pretended device: a seed and an offset, with other numbers than the CPU's."""

from __future__ import annotations

import hashlib
import itertools
import weakref
from typing import Any

import torch

CpuGenerator = torch.Generator
CUDA = torch.device("cuda", 0)

# Operations get a plain wrapper of a generator's C++ part. This part is never drawn from: its seed says whose it is.
_names = itertools.count(0x5EED_0000_0000_0000)
_known: weakref.WeakValueDictionary[int, CudaGenerator] = weakref.WeakValueDictionary()


class CudaGenerator(CpuGenerator):
    """As CUDA's, with 16 bytes of state. `torch.Generator(device)` makes one for CUDA, and else a CPU's.

    Attributes:
        as_the_cpu: of all generators: whether they give the numbers of the CPU's, to compare devices.
    """

    as_the_cpu = False
    _seed: int
    _offset: int
    _twin: CpuGenerator

    def __new__(cls, device: Any = "cpu") -> Any:
        if torch.device(device).type != "cuda":
            return CpuGenerator(device)
        made = CpuGenerator.__new__(cls)
        made._seed, made._offset, made._twin = 0, 0, CpuGenerator()
        CpuGenerator.manual_seed(made, name := next(_names))
        _known[name] = made
        return made

    def __init__(self, device: Any = "cpu") -> None:
        pass

    @property
    def device(self) -> torch.device:
        return CUDA

    def manual_seed(self, seed: int) -> CudaGenerator:
        self._seed, self._offset = int(seed) % 2**64, 0
        self._twin = CpuGenerator().manual_seed(seed)
        return self

    def seed(self) -> int:
        return self.manual_seed(CpuGenerator().seed())._seed

    def initial_seed(self) -> int:
        return self._seed

    def get_state(self) -> torch.Tensor:
        numbers = self._seed.to_bytes(8, "little") + self._offset.to_bytes(8, "little")
        return torch.tensor(list(numbers), dtype=torch.uint8)

    def set_state(self, state: torch.Tensor) -> CudaGenerator:
        if state.device.type != "cpu" or state.dtype != torch.uint8:
            raise TypeError("RNG state must be a torch.ByteTensor")
        if state.numel() != 16:
            raise RuntimeError("RNG state is wrong size")
        data = bytes(state.tolist())
        self._seed, self._offset = int.from_bytes(data[:8], "little"), int.from_bytes(data[8:], "little")
        return self

    def of_one_operation(self) -> CpuGenerator:
        """A CPU's generator for the next operation."""
        if self.as_the_cpu:
            return self._twin
        mixed = hashlib.sha256(f"{self._seed} {self._offset}".encode()).digest()[:7]
        self._offset += 4
        return CpuGenerator().manual_seed(int.from_bytes(mixed, "little"))


def owner(generator: Any) -> Any:
    """The pretended generator behind an operation's argument; the argument itself if it is the CPU's or None."""
    return None if generator is None else _known.get(CpuGenerator.initial_seed(generator), generator)


default = CudaGenerator("cuda")
