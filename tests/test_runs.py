"""Run folders: nothing is lost to a kill, a full disk or a second process, and damage is noticed."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from carv3d.config import Config, load
from carv3d.errors import UserError
from carv3d.runs import (
    Checkpoints,
    MetricsLog,
    Run,
    generator_tensors,
    optimizer_state,
    optimizer_tensors,
    read_metrics,
    replace_file,
    restore_generators,
    run,
    slug,
    storage,
)

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load(None, ["prompt=A red chair!", f"output_dir={tmp_path}", "training.keep_checkpoints=2"])


def tensors(step: int) -> dict[str, Tensor]:
    """Tensors that tell of which step they are, one of them neither contiguous nor alone in its memory."""
    base = torch.full((4, 3), float(step))
    return {"grid": base, "part": base.T[1:]}


def save(checkpoints: Checkpoints, step: int, keep: int = 2, **info: Any) -> Path:
    return checkpoints.save(step, tensors(step), {"moment": torch.full((2,), step)}, info, keep=keep)


def assert_whole(checkpoints: Checkpoints, step: int) -> None:
    got = checkpoints.load(step)
    assert got.step == step
    assert torch.equal(got.scene["part"], tensors(step)["part"])
    assert torch.equal(got.state["moment"], torch.full((2,), step))


def python(code: str, *arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, **options)


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# ---------------------------------------------------------------------------------------- the folder


def test_a_run_can_be_made_and_read(config: Config, tmp_path: Path) -> None:
    with Run.create(config, "shapes", ["carv3d", "generate", "a red chair"]) as made:
        assert made.path == tmp_path / "shapes" / "a-red-chair-1"
        logging.getLogger("carv3d.anything").info("hello")
    opened = Run.open(made.path)
    assert opened.config == config
    assert opened.environment["command"] == "carv3d generate 'a red chair'"
    assert opened.environment["torch"] == torch.__version__
    assert opened.environment["device"] == "cpu"
    assert {"python", "carv3d", "cpu", "started", "git_revision"} <= opened.environment.keys()
    assert "hello" in (made.path / "log.txt").read_text()
    logging.getLogger("carv3d.anything").info("after the end")
    assert "after" not in (made.path / "log.txt").read_text()


def test_the_next_free_number(config: Config, tmp_path: Path) -> None:
    """One above the highest, so that a new run never takes the place of a deleted one."""
    for n in (1, 2):
        with Run.create(config, "shapes", "") as made:
            assert made.path.name == f"a-red-chair-{n}"
    (tmp_path / "shapes" / "a-red-chair-11").mkdir()
    (tmp_path / "shapes" / "a-red-chair-stool-20").mkdir()
    with Run.create(config, "shapes", "") as made:
        assert made.path.name == "a-red-chair-12"


def test_two_processes_get_two_folders(config: Config, tmp_path: Path) -> None:
    """Both see the same number free; only one of them may have it."""
    code = """
import sys
from carv3d.config import load
from carv3d.runs import Run
config = load(None, ["prompt=x", "output_dir=" + sys.argv[1]])
print([Run.create(config, "c", "").path.name for _ in range(5)])
"""
    both = [python(code, tmp_path) for _ in range(2)]
    names = [name for process in both for name in eval(process.communicate(timeout=60)[0])]
    assert sorted(names, key=lambda name: int(name[2:])) == [f"x-{n}" for n in range(1, 11)]


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("a red chair", "a-red-chair"),
        ("  A  RED/../chair?! ", "a-red-chair"),
        ("", "run"),
        ("...", "run"),
        ("Ein grüner Stuhl", "ein-grüner-stuhl"),
        ("一把红色的椅子", "一把红色的椅子"),
    ],
)
def test_slug(prompt: str, name: str) -> None:
    assert slug(prompt) == name


@given(st.text(max_size=200))
def test_slug_is_always_a_file_name(prompt: str) -> None:
    name = slug(prompt)
    assert name and "/" not in name and not name.startswith((".", "-"))
    assert len(f"{name}-10000".encode("utf-8", "surrogatepass")) <= 255


def test_explicit_folder_must_be_empty(config: Config, tmp_path: Path) -> None:
    """Results are never mixed with, or written over, something else."""
    folder = tmp_path / "mine"
    Run.create(config, "shapes", "", folder=folder).close()
    with pytest.raises(UserError, match="exists and is not empty"):
        Run.create(config, "shapes", "", folder=folder)
    assert Run.open(folder).config == config
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="exists and is not empty"):
        Run.create(config, "shapes", "", folder=tmp_path / "file")


def test_what_is_no_run(config: Config, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not there"):
        Run.open(tmp_path / "nothing")
    with pytest.raises(UserError, match="is not a run"):
        Run.open(tmp_path)
    with Run.create(config, "shapes", "") as made:
        checkpoint = save(made.checkpoints, 1)
    with pytest.raises(UserError, match=f"give its run, {made.path}"):
        Run.open(checkpoint)


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "last.ckpt"])
def test_pickles_are_refused(config: Config, tmp_path: Path, name: str) -> None:
    """They run code when they are opened."""
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match="may run code"):
        Run.open(tmp_path / name)
    with Run.create(config, "shapes", "") as made:
        (made.checkpoints.folder / name).write_bytes(b"")
        with pytest.raises(UserError, match="may run code"):
            made.load_checkpoint()


def test_folder_that_may_not_be_written(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    config.output_dir = str(tmp_path / "file" / "outputs")
    with pytest.raises(UserError, match="a part of the path is a file"):
        Run.create(config, "shapes", "")

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(UserError, match="permission denied"):
        Run.create(config, "shapes", "", folder=tmp_path / "new")


def test_full_disk_leaves_no_half_a_run(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same command must work once there is space again."""
    folder = tmp_path / "mine"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(UserError, match="the disk is full"):
            Run.create(config, "shapes", "", folder=folder)
    Run.create(config, "shapes", "", folder=folder).close()


def test_full_disk_does_not_spoil_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "config.yaml"
    replace_file(file, b"old")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(UserError, match="the disk is full"):
        replace_file(file, b"new")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_other_errors_stay_as_they_are(tmp_path: Path) -> None:
    """A bug must not look like the user's disk."""
    with pytest.raises(OSError, match="bad"), storage.disk_errors(tmp_path):
        raise OSError(errno.EBADF, "bad")


# ------------------------------------------------------------------------------------------ the lock


def test_one_writer_at_a_time(config: Config) -> None:
    """Readers are free; a second writer is told who the first is."""
    with Run.create(config, "shapes", "") as made:
        Run.open(made.path)
        with pytest.raises(UserError, match=rf"in use by another process \(pid {os.getpid()}\)"):
            Run.open(made.path, write=True)
    Run.open(made.path, write=True).close()


def test_lock_between_processes_ends_with_a_kill(config: Config) -> None:
    code = """
import sys, time
from carv3d.runs import Run
run = Run.open(sys.argv[1], write=True)
print("locked", flush=True)
time.sleep(60)
"""
    made = Run.create(config, "shapes", "")
    made.close()
    process = python(code, made.path)
    try:
        assert process.stdout is not None and process.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match=rf"pid {process.pid}\b"):
            Run.open(made.path, write=True)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    Run.open(made.path, write=True).close()


# --------------------------------------------------------------------------------------- checkpoints


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
    assert got.scene.keys() == half.keys()
    for name, tensor in half.items():
        assert torch.equal(got.scene[name], tensor) and got.scene[name].dtype == tensor.dtype


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
            assert got.scene["a"].unique().tolist() == [got.step] == got.state["b"].unique().tolist()
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
    moments, groups = optimizer_tensors(optimizer.state_dict())
    state = moments | generator_tensors({"cameras": generator})
    Checkpoints(tmp_path).save(1, model.state_dict(), state, {"groups": groups}, keep=1)
    advance(model, optimizer, generator, 3)

    other, other_optimizer, other_generator = build()
    saved = Checkpoints(tmp_path).load()
    other.load_state_dict(saved.scene)
    other_optimizer.load_state_dict(optimizer_state(saved.state, saved.info["groups"]))
    restore_generators(saved.state, {"cameras": other_generator})
    assert other_optimizer.param_groups[0]["betas"] == (0.8, 0.95)
    advance(other, other_optimizer, other_generator, 3)
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_generator_of_another_device_is_explained() -> None:
    """A CUDA generator's state is shorter than a CPU one's."""
    with pytest.raises(UserError, match="cannot be continued on cpu"):
        restore_generators({"generator.x": torch.zeros(16, dtype=torch.uint8)}, {"x": torch.Generator()})


def test_optimizer_whose_state_is_no_tensors_is_refused() -> None:
    """It would be lost silently."""
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.LBFGS([parameter])
    parameter.grad = torch.ones(2)
    optimizer.step(lambda: torch.tensor(1.0))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="tensors"):
        optimizer_tensors(optimizer.state_dict())


# ---------------------------------------------------------------------------------------- metrics


def steps(path: Path) -> list[int]:
    return [row["step"] for row in read_metrics(path)]


def test_metrics_can_be_read_while_they_are_written(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    log = MetricsLog(file)
    log.write(1, {"loss": 0.5, "note": "x", "odd": float("nan")})
    assert read_metrics(file) == [{"step": 1, "loss": 0.5, "note": "x", "odd": None}]
    log.close()


def test_resume_drops_what_came_after(tmp_path: Path) -> None:
    """The log of a resumed run has every step once."""
    file = tmp_path / "metrics.jsonl"
    log = MetricsLog(file)
    for step in range(1, 8):
        log.write(step, {"loss": 1.0 / step})
    log.close()
    log = MetricsLog(file, resume_step=4)
    log.write(5, {"loss": 9.0})
    log.close()
    assert steps(file) == [1, 2, 3, 4, 5]
    assert read_metrics(file)[-1]["loss"] == 9.0


def test_half_a_line_at_the_end_is_left_out_and_not_written_on(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n{"step": 2, "lo')
    assert steps(file) == [1]
    log = MetricsLog(file, resume_step=10)
    log.write(2, {})
    log.close()
    assert steps(file) == [1, 2]


@pytest.mark.parametrize("line", ["garbage", "{}", "[]", '{"step": null}', "\x00"])
def test_broken_line_in_the_middle_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(UserError, match=r"metrics.jsonl:2 "):
        read_metrics(file)


def test_full_disk_while_logging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/dev/full is a disk without space."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log._file.close()
    log._file = open("/dev/full", "a")  # noqa: SIM115
    with pytest.raises(UserError, match="the disk is full"):
        log.write(1, {"loss": 1.0})
    with pytest.raises(UserError, match="the disk is full"):
        log.close()


def test_full_disk_does_not_flood_the_terminal(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    """Logging would print a traceback for every line that it cannot write."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    handler = run._LogFile("/dev/full")
    handler.handle(logging.LogRecord("x", logging.INFO, "", 0, "hello", None, None))
    assert capsys.readouterr().err == ""
    handler.handle(logging.LogRecord("x", logging.INFO, "", 0, "%d", ("a bug",), None))
    assert "TypeError" in capsys.readouterr().err
    handler.stream.close = lambda: None  # type: ignore[method-assign]
    handler.stream = None  # type: ignore[assignment]


def test_tensorboard_has_the_same_numbers_once(config: Config) -> None:
    """Also after a resume."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Run.create(config, "shapes", "") as made:
        for step in (1, 2, 3):
            made.metrics().write(step, {"loss": float(step), "note": "text"})
    with Run.open(made.path, write=True) as again:
        again.metrics(resume_step=2).write(3, {"loss": 30.0})
    events = EventAccumulator(str(made.path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert steps(made.metrics_path) == [1, 2, 3]
