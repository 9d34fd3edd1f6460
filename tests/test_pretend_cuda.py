"""carv3d on a pretended CUDA device: devices, waits and copies, without a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.pretend_cuda import TORCH, native

ROOT = Path(__file__).parents[1]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.version.cuda is not None, reason="torch has CUDA: run `pytest -m gpu`"),
    pytest.mark.skipif(not torch.__version__.startswith(TORCH), reason=f"written for torch {TORCH}"),
    pytest.mark.skipif(native.compiler() is None, reason="there is no C++ compiler"),
    pytest.mark.skipif(sys.platform != "linux", reason="written for Linux"),
]

WAITS = {
    "voxel grid": 1,  # the number of samples in occupied cells
    "hash grid": 1,
    "background that is learned": 1,
    "exact teacher": 1,
    "sd21-base": 1,
    "sdxl": 1,
    "sd3": 1,
    "deepfloyd": 1,
    "Gaussians": 6,  # torch's blending, which is used without gsplat
    "Gaussians that densify": 12,  # a densification in every step
}
"""Waits of the host for the device in a step, by configuration."""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What each case gave."""
    command = [sys.executable, "-m", "tests.pretend_cuda", str(tmp_path_factory.mktemp("pretend"))]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return dict(json.loads(ended.stdout.splitlines()[-1]))


def test_every_case_runs_on_the_device(found: dict[str, dict[str, Any]]) -> None:
    """Two steps of each kind of scene and family, every verb, and a resumed run: nothing is on the wrong device."""
    wrong = {name: case["traceback"] for name, case in found.items() if "error" in case}
    assert not wrong, "\n".join(wrong.values())
    verbs = {name.removeprefix("verb: ") for name in found if name.startswith("verb: ")}
    assert {"generate", "resume", "measure", "attribute", "distill", "sample", "doctor"} <= verbs
    steps = {name.removeprefix("steps: "): case for name, case in found.items() if name.startswith("steps: ")}
    assert set(steps) == set(WAITS)
    for case in steps.values():
        assert case["devices"] == ["cuda:0"]
        assert all(abs(value) < float("inf") for value in case["figures"].values())


@pytest.mark.parametrize("name", WAITS)
def test_a_step_waits_no_more_than_is_known(found: dict[str, dict[str, Any]], name: str) -> None:
    """Copies to the device are few and do not wait; nothing but what a wait needs is copied back."""
    case = found[f"steps: {name}"]
    assert case["wait"] == WAITS[name], case["table"]
    assert case["copy to device"] <= 4, case["table"]
    assert case["copy to host"] <= ("Gaussians" in name), case["table"]


@pytest.mark.parametrize("name", ["voxel grid", "Gaussians"])
def test_gradients_are_those_of_the_cpu(found: dict[str, dict[str, Any]], name: str) -> None:
    """With the same random numbers."""
    case = found[f"same: {name}"]
    assert case["difference"] < 1e-4 * case["norm"]


_REFUSED = """
from tests.pretend_cuda.runtime import install
install()
import torch
x, g = torch.ones(3, 4, device="cuda"), torch.Generator("cuda")
assert x.is_cuda and str(x.device) == "cuda:0" and str(g.device) == "cuda:0"
wrong = [
    lambda: x + torch.ones(4),
    lambda: x.numpy(),
    lambda: torch.ones(4)[torch.tensor([1], device="cuda")],
    lambda: torch.rand(3, generator=torch.Generator(), device="cuda"),
    lambda: torch.rand(3, generator=g),
    lambda: torch.stack([torch.zeros((), device="cuda"), torch.zeros(())]),
]
for number, call in enumerate(wrong):
    try:
        call()
    except (RuntimeError, TypeError):
        continue
    raise SystemExit(f"not refused: {number}")
assert (x + torch.ones(())).is_cuda and x[torch.tensor([0])].is_cuda  # numbers and indices may come from the CPU
state = g.get_state()
first = torch.rand(3, generator=g, device="cuda")
assert not torch.equal(first.cpu(), torch.rand(3, generator=g, device="cuda").cpu())
g.set_state(state)
assert torch.equal(first.cpu(), torch.rand(3, generator=g, device="cuda").cpu())
from tests.pretend_cuda.recorder import record
with record("/") as seen:
    x.sum().item(); x.nonzero(); x[x > 0]; torch.ones(2).to("cuda"); x.cpu()
    torch.ones(2).pin_memory().to("cuda", non_blocking=True)
    x[x > 0] = 1.0
assert (seen.count("wait"), seen.count("copy to device"), seen.count("copy to host")) == (5, 2, 1), seen.table()
"""


def test_the_device_refuses_what_cuda_refuses() -> None:
    """Or else the other tests would prove nothing."""
    ended = subprocess.run([sys.executable, "-c", _REFUSED], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
