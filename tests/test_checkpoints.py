"""Checkpoints: whole or not there, whatever ends the process; and damage is noticed."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from carv3d.config import Config
from carv3d.errors import UserError
from carv3d.runs import (
    Checkpoints,
    Run,
)
from carv3d.runs.state import GeneratorState, OptimizerState, pack, unpack
from tests.run_folders import assert_whole, full_disk, python, save, small_config

config = pytest.fixture(small_config)


def test_checkpoint_comes_back_as_it_was(config: Config) -> None:
    with Run.create(config, "shapes", "") as made:
        half = {"a": torch.randn(3).to(torch.bfloat16), "empty": torch.zeros(0, 4), "scalar": torch.tensor(7)}
        path = made.save_checkpoint(1000, half, {}, {"seconds": 1.5, "groups": [{"lr": 0.1}]})
        assert path.name == "step_001000"
        assert sorted(p.name for p in path.iterdir()) == [
            "scene.safetensors",
            "state.json",
            "state.safetensors",
        ]
        got = made.load_checkpoint()
    assert got.info == {"seconds": 1.5, "groups": [{"lr": 0.1}]}
    assert got.trained.keys() == half.keys()
    for name, tensor in half.items():
        assert torch.equal(got.trained[name], tensor) and got.trained[name].dtype == tensor.dtype


def test_newest_ones_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3, 10):
        save(checkpoints, step)
    assert list(checkpoints.paths()) == [3, 10]
    assert_whole(checkpoints, 10)
    assert {p.name for p in tmp_path.iterdir()} == {"step_000003", "step_000010"}


def test_going_back_gives_up_what_came_later(tmp_path: Path) -> None:
    """After a resume from step 2, a checkpoint of step 9 is of another history, and must not be the newest."""
    checkpoints = Checkpoints(tmp_path)
    for step in (2, 9, 3):
        save(checkpoints, step)
    assert list(checkpoints.paths()) == [2, 3]


def test_same_step_again_takes_the_new_one(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 5, take=1)
    save(checkpoints, 5, take=2)
    assert checkpoints.load().info == {"take": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["step_000005"]


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint in"):
        Checkpoints(tmp_path / "checkpoints").load()
    save(Checkpoints(tmp_path), 5)
    with pytest.raises(UserError, match="no checkpoint of step 4; there are those of 5"):
        Checkpoints(tmp_path).load(4)


def test_stopping_at_any_call_leaves_the_old_or_the_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends at the n-th of the calls that change the disk, for every n, and nothing is tidied up.

    `os._exit` in the middle is played by an exception that no handler may answer by tidying: the handlers'
    `rmtree` does nothing after it.
    """
    calls = {"os": ["rename", "fsync"], "shutil": ["rmtree"], "pathlib.Path": ["mkdir"]}
    for same_step in (False, True):
        for n in range(1, 100):
            folder = tmp_path / f"{same_step}-{n}"
            checkpoints = Checkpoints(folder)
            save(checkpoints, 1, take=1)
            save(checkpoints, 2, take=1)
            left = n
            with monkeypatch.context() as patch:
                for module, names in calls.items():
                    for name in names:
                        target = f"{module}.{name}"
                        original = getattr(Path if module == "pathlib.Path" else sys.modules[module], name)

                        def counted(*args: Any, original: Any = original, **kwargs: Any) -> Any:
                            nonlocal left
                            left -= 1
                            if left == 0:
                                if original.__name__ == "rmtree":  # half done
                                    for file in list(Path(args[0]).glob("*"))[:1]:
                                        file.unlink()
                                raise Killed
                            return original(*args, **kwargs) if left > 0 else None

                        patch.setattr(target, counted)
                step = 2 if same_step else 3
                try:
                    save(checkpoints, step, take=2)
                    finished = True
                except Killed:
                    finished = False
            found = checkpoints.load()
            assert (found.step, found.info["take"]) in {(2, 1), (step, 2)}, f"killed at call {n}"
            checkpoints.clean()
            assert (checkpoints.load().step, checkpoints.load().info) == (found.step, found.info), "lost"
            for whole in checkpoints.paths():
                assert_whole(checkpoints, whole)
            assert all(path.name.startswith("step_") for path in folder.iterdir()), "leftovers"
            if finished:
                assert (found.step, found.info["take"]) == (step, 2)
                assert n > 8, "the test has to see the calls"
                break


class Killed(BaseException):
    pass


def test_kill_9_while_saving_leaves_a_whole_checkpoint(config: Config) -> None:
    """The real thing: a process that saves in a loop, killed at odd moments."""
    code = """
import sys, torch
from carv3d.runs import Run
run = Run.open(sys.argv[1], write=True)
run.config
print("go", flush=True)
for step in range(1, 10**6):
    number = step // 2  # every other time over the same step
    tensor = torch.full((50_000,), float(number))
    run.save_checkpoint(number, {"a": tensor}, {"b": tensor}, {})
"""
    made = Run.create(config, "shapes", "")
    made.close()
    for attempt in range(3):
        process = python(code, made.path)
        assert process.stdout is not None and process.stdout.readline() == "go\n"
        time.sleep(0.15 + 0.037 * attempt)
        process.send_signal(signal.SIGKILL)
        process.wait()
        with Run.open(made.path, write=True) as again:
            got = again.load_checkpoint()
            assert got.trained["a"].unique().tolist() == [got.step] == got.state["b"].unique().tolist()
            assert all(path.name.startswith("step_") for path in again.checkpoints.folder.iterdir())


def test_full_disk_while_saving_keeps_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    for n in range(1, 5):
        left = n

        def fills_up(descriptor: int) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                full_disk()

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fills_up)
            with pytest.raises(UserError, match="the disk is full; free some space"):
                save(checkpoints, 2)
        assert [path.name for path in tmp_path.iterdir()] == ["step_000001"]
        assert_whole(checkpoints, 1)


def damage_truncate(path: Path) -> str:
    file = path / "scene.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    return "scene.safetensors has changed"


def damage_flip(path: Path) -> str:
    file = path / "state.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    return "state.safetensors has changed"


def damage_missing(path: Path) -> str:
    (path / "state.safetensors").unlink()
    return "state.safetensors is missing"


def damage_json(path: Path) -> str:
    (path / "state.json").write_text('{"step": 2, ')
    return "state.json cannot be read"


def damage_empty_json(path: Path) -> str:
    (path / "state.json").write_text("[]")
    return "state.json cannot be read"


def damage_moved(path: Path) -> str:
    """Renamed by hand."""
    meta = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps(meta | {"step": 7}))
    return "it is of step 7"


def damage_no_safetensors(path: Path) -> str:
    """Something else, with a sum that fits."""
    import hashlib

    (path / "scene.safetensors").write_bytes(b"\x80\x04 a pickle")
    meta = json.loads((path / "state.json").read_text())
    meta["sha256"]["scene.safetensors"] = hashlib.sha256(b"\x80\x04 a pickle").hexdigest()
    (path / "state.json").write_text(json.dumps(meta))
    return "it is not safetensors"


DAMAGES = [
    damage_truncate,
    damage_flip,
    damage_missing,
    damage_json,
    damage_empty_json,
    damage_moved,
    damage_no_safetensors,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_and_the_older_one_used(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Any) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    reason = damage(save(checkpoints, 2))
    with caplog.at_level(logging.WARNING, "carv3d"):
        assert checkpoints.load().step == 1
    assert "step_000002 is damaged" in caplog.text and reason in caplog.text and "that of step 1" in caplog.text
    with pytest.raises(UserError, match=rf"step_000002 is damaged: {reason}.*; use the one of step 1"):
        checkpoints.load(2)
    damage_truncate(tmp_path / "step_000001")
    with pytest.raises(UserError, match=rf"step_000002 is damaged: {reason}.*no other one is whole"):
        checkpoints.load()


# ------------------------------------------------------------------------------------------ state


@pytest.mark.parametrize("steps_before", [0, 3])
def test_training_goes_on_bit_for_bit(tmp_path: Path, steps_before: int) -> None:
    """Adam with two groups and its generator, saved and loaded, takes exactly the same steps."""

    def build() -> tuple[torch.nn.Module, torch.optim.Optimizer, torch.Generator]:
        model = torch.nn.Linear(4, 2)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(0.5)
        groups = [{"params": [model.weight], "lr": 0.1}, {"params": [model.bias]}]
        optimizer = torch.optim.Adam(groups, lr=0.01, betas=(0.8, 0.95), eps=1e-15)
        return model, optimizer, torch.Generator().manual_seed(3)

    def advance(model: torch.nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator, n: int) -> None:
        for _ in range(n):
            optimizer.zero_grad()
            model(torch.randn(5, 4, generator=generator)).square().sum().backward()
            optimizer.step()

    model, optimizer, generator = build()
    advance(model, optimizer, generator, steps_before)
    state = pack({"optimizer": OptimizerState(optimizer), "cameras": GeneratorState(generator)})
    Checkpoints(tmp_path).save(1, model.state_dict(), state, {}, keep=1)
    advance(model, optimizer, generator, 3)

    other, other_optimizer, other_generator = build()
    saved = Checkpoints(tmp_path).load()
    other.load_state_dict(saved.trained)
    unpack({"optimizer": OptimizerState(other_optimizer), "cameras": GeneratorState(other_generator)}, saved.state)
    assert other_optimizer.param_groups[0]["betas"] == (0.8, 0.95)
    advance(other, other_optimizer, other_generator, 3)
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_generator_of_another_device_is_explained() -> None:
    """A CUDA generator's state is shorter than a CPU one's."""
    with pytest.raises(UserError, match="cannot be continued on cpu"):
        GeneratorState(torch.Generator()).load_state_dict({"train": torch.zeros(16, dtype=torch.uint8)})


def test_optimizer_whose_state_is_no_tensors_is_refused() -> None:
    """It would be lost silently."""
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.LBFGS([parameter])
    parameter.grad = torch.ones(2)
    optimizer.step(lambda: torch.tensor(1.0))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="tensors"):
        OptimizerState(optimizer).state_dict()
