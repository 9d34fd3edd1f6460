"""A pretended CUDA device, for tests on machines without one.

`install()` makes `device="cuda"` work on a torch without CUDA. Tensors of that device say that they are on cuda:0, do
not mix with those of the CPU, and draw from generators of their own. Their numbers are computed on the CPU. `record()`
notes each place where a program would wait for a device, or copy to or from it.

It finds tensors and generators on the wrong device, waits and copies in a step, and code that runs on CUDA only. It
does not find what speed, memory, rounding, kernels of other packages or races do.

It uses private parts of torch, and is tried with the version in `TORCH` alone.
"""

from __future__ import annotations

TORCH = "2.13"
"""The version of torch that this is written for."""
