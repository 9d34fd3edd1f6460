"""Settings for all tests: no network, few threads, and GPU tests only where there is a GPU."""

from __future__ import annotations

import os
from pathlib import Path

# Read when the libraries are imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ.setdefault("NUMBA_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "numba"))  # of all commands
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the commands that tests start
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import hypothesis
import pytest
import torch

# One thread: sums are taken in the same order on every machine, and small tests gain nothing from more.
torch.set_num_threads(1)
torch.backends.cudnn.benchmark = False
torch.backends.cudnn.allow_tf32 = False
torch.backends.cuda.matmul.allow_tf32 = False

# The same examples in every run, and no limit on the time of one: the machine may be busy.
hypothesis.settings.register_profile("carv3d", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("carv3d")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that no worker waits at the end; skip what needs a GPU where there is none."""
    slow = {item.path for item in items if "slow" in item.keywords}
    items.sort(key=lambda item: item.path not in slow)
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What tests keep for later is not the user's."""
    monkeypatch.setenv("CARV3D_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """For code of others that draws from torch's global generator; ours takes an explicit one."""
    torch.manual_seed(0)
