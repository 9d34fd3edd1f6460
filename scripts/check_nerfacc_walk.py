"""Without a GPU: nerfacc's walk through the cells, its own source compiled for the CPU, against ours.

    python scripts/check_nerfacc_walk.py [--trials 400] [--default]

The kernel `traverse_grids_kernel` is plain C++ but for its launch. Its text is taken from the installed nerfacc and
compiled by g++, with CUDA's headers for the vector types (no compiler for CUDA, no device). Compared, over random
cameras, cubes, masks and numbers of samples (with --default: the renderer's defaults, always with jitter):

- the samples that it keeps with those of the torch path;
- the same with the stand-in that the tests use in its place (tests/nerfacc_kernels.py): these must be equal.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nerfacc
import torch
from torch import Tensor
from torch.utils.cpp_extension import _find_cuda_home, load_inline

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from carv3d.cameras import Cameras
from carv3d.renderers import compositing, nerfacc_backend
from carv3d.renderers.occupancy import Occupancy
from carv3d.renderers.rays import Rays
from tests import nerfacc_kernels

NOT_NEEDED = (
    *("ATen/cuda/CUDAContext.h", "ATen/cuda/CUDAGeneratorImpl.h", "ATen/cuda/CUDAGraphsUtils.cuh"),
    *("ATen/cuda/Exceptions.h", "c10/cuda/CUDAGuard.h", "curand.h", "curand_kernel.h", "curand_philox4x32_x.h"),
)
BEFORE = """
#include <torch/extension.h>
#include <cuda_runtime.h>
#include <algorithm>
using std::max;
using std::min;
struct Index { int x; };
static Index blockIdx{0}, threadIdx{0}, blockDim{1}, gridDim{1};
"""
AFTER = """
std::vector<torch::Tensor> walk(
    torch::Tensor origins, torch::Tensor directions, torch::Tensor binaries, torch::Tensor aabbs, torch::Tensor hits,
    torch::Tensor t_sorted, torch::Tensor t_indices, torch::Tensor near, torch::Tensor far, double step) {
  int rays = origins.size(0);
  RaySegmentsSpec intervals, samples;
  intervals.chunk_cnts = torch::empty({rays}, torch::kLong);
  samples.chunk_cnts = torch::empty({rays}, torch::kLong);
  for (bool first : {true, false}) {
    if (!first) {
      intervals.memalloc_data_from_chunk(true, true);
      samples.memalloc_data_from_chunk(false, false, true);
    }
    device::traverse_grids_kernel(
        rays, origins.data_ptr<float>(), directions.data_ptr<float>(), nullptr, 1,
        make_int3(binaries.size(1), binaries.size(2), binaries.size(3)), binaries.data_ptr<bool>(),
        aabbs.data_ptr<float>(), hits.data_ptr<bool>(), t_sorted.data_ptr<float>(), t_indices.data_ptr<int64_t>(),
        near.data_ptr<float>(), far.data_ptr<float>(), step, 0.f, -1, first,
        device::PackedRaySegmentsSpec(intervals), device::PackedRaySegmentsSpec(samples), nullptr);
  }
  return {samples.vals, samples.ray_indices, samples.chunk_starts, samples.chunk_cnts};
}
"""


def compiled(folder: Path) -> Any:
    """The kernel as a Python module."""
    home = _find_cuda_home()
    if home is None or not (Path(home) / "include" / "cuda_runtime.h").exists():
        sys.exit("CUDA's headers are not found: install a CUDA toolkit, and set CUDA_HOME to its folder")
    for name in NOT_NEEDED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    source = Path(nerfacc.__file__).parent / "cuda" / "csrc"
    text = (source / "grid.cu").read_text()
    begin, end = text.index('#include "include/data_spec.hpp"'), text.index("__global__ void ray_aabb_intersect_kernel")
    return load_inline(
        "nerfacc_walk",
        BEFORE + text[begin:end] + "}}" + AFTER,
        functions=["walk"],
        extra_cflags=["-O1", "-std=c++17", "-w", *(f"-D__{word}__=" for word in ("host", "device", "global"))],
        extra_include_paths=[str(folder), str(source), str(Path(home) / "include")],
        build_directory=str(folder),
    )


def walk_of(module: Any) -> Any:
    """What takes the place of `nerfacc.cuda.traverse_grids`."""

    def traverse_grids(*arguments: Any) -> tuple[Any, Any, Tensor]:
        origins, directions, _, binaries, aabbs, t_sorted, t_indices, hits, near, far, step = arguments[:11]
        arrays = module.walk(origins, directions, binaries, aabbs, hits, t_sorted, t_indices, near, far, step)
        samples = dict(zip(("vals", "ray_indices", "chunk_starts", "chunk_cnts"), arrays, strict=True))
        nothing = dict.fromkeys((*samples, "is_left", "is_right"))
        return SimpleNamespace(**nothing), SimpleNamespace(**samples, is_valid=None), far

    return traverse_grids


def trial(rng: torch.Generator, default: bool) -> tuple[Rays, Occupancy, float]:
    """Rays, a mask of the cube, and half the cube's side."""

    def between(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=rng).item()

    angles = torch.tensor([between(-180, 180)]), torch.tensor([between(-89, 89)])
    shape = {"height": 24, "width": 24} if default else {"height": 12, "width": 12, "fov": between(20, 120)}
    cameras = Cameras.look_at_origin(*angles, distance=3.0 if default else between(0.05, 6), **shape)
    bound = 1.0 if default else between(0.5, 2)
    samples, cells = (64, 32) if default else (int(between(1, 129)), int(between(1, 65)))
    noise = rng if default or between(0, 1) < 0.5 else None
    origins, directions = (x.reshape(-1, 3) for x in cameras.rays())
    occupancy = Occupancy(resolution=cells, threshold=0.1)
    occupancy.occupied = torch.rand(cells, cells, cells, generator=rng) < between(0, 1)
    return Rays.through(origins, directions, bound, samples, noise), occupancy, bound


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=400)
    parser.add_argument("--default", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        walk = walk_of(compiled(Path(folder)))
        rng = torch.Generator().manual_seed(0)
        count = different = unequal = 0
        farthest = 0.0
        for _ in range(options.trials):
            rays, occupancy, bound = trial(rng, options.default)
            nerfacc.cuda.traverse_grids = walk
            theirs, everything = (nerfacc_backend.kept(rays, mask, bound) for mask in (occupancy, None))
            nerfacc.cuda.traverse_grids = nerfacc_kernels.traverse_grids
            unequal += not torch.equal(theirs, nerfacc_backend.kept(rays, occupancy, bound))
            ours = compositing.kept(rays, occupancy, bound)
            either, twice = torch.cat([ours, theirs]).unique(return_counts=True)
            only_one = either[twice == 1]
            place = (rays.at(only_one)[2] / bound + 1) * (occupancy.resolution / 2)
            farthest = max([farthest, *(place - place.round()).abs().amin(-1).tolist()])
            count, different = count + len(everything), different + len(only_one)
    print(f"{options.trials} trials, {count:,} samples")
    print(f"kept by one of torch and nerfacc only: {different}, at most {farthest:.1e} of a cell from a face")
    print(f"trials in which the stand-in differs from nerfacc's source: {unequal}")


if __name__ == "__main__":
    main()
