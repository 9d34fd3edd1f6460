"""Run folders: nothing is lost to a full disk or a second process."""

from __future__ import annotations

import errno
import logging
import os
import signal
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from carv3d.config import Config
from carv3d.errors import UserError
from carv3d.runs import (
    Run,
    replace_file,
    slug,
    storage,
)
from tests.run_folders import full_disk, python, save, small_config

config = pytest.fixture(small_config)


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


# ------------------------------------------------------------------------- what is in a folder already


@pytest.mark.parametrize("kept", [[], ["config.yaml"], ["config.yaml", "log.txt", ".config.yaml-99999999.tmp"]])
def test_a_run_that_was_killed_before_its_start_can_be_started_again(
    config: Config, tmp_path: Path, kept: list[str]
) -> None:
    """By the same command in the same folder; to go on with it is refused, because there is nothing."""
    folder = tmp_path / "run"
    Run.create(config, "shapes", "", folder=folder).close()
    for path in folder.iterdir():
        if path.is_file() and path.name not in kept:
            path.unlink()
    if ".config.yaml-99999999.tmp" in kept:
        (folder / ".config.yaml-99999999.tmp").write_text("half")
    if kept:
        with pytest.raises(UserError, match=r"stopped before its start: give the command .* --output"):
            Run.open(folder, write=True)
    with Run.create(config, "shapes", "", folder=folder) as again:
        assert Run.open(again.path).config == config
    assert not list(folder.rglob("*.tmp"))


def test_a_folder_with_anything_else_is_left_alone(config: Config, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    Run.create(config, "shapes", "", folder=folder).close()
    (folder / "environment.json").unlink()
    (folder / "previews" / "mine.png").write_text("precious")
    with pytest.raises(UserError, match="exists and is not empty"):
        Run.create(config, "shapes", "", folder=folder)
    assert (folder / "previews" / "mine.png").read_text() == "precious"


@pytest.mark.parametrize(
    "name", [".lock", "log.txt", "metrics.jsonl", "checkpoints", "previews", "mesh", "turntable.mp4"]
)
def test_links_in_a_run_are_not_followed(config: Config, tmp_path: Path, name: str) -> None:
    """What they lead to is as it was."""
    Run.create(config, "shapes", "", folder=tmp_path / "run").close()
    target, link = tmp_path / "precious", tmp_path / "run" / name
    target.write_text("mine")
    if link.is_dir():
        link.rmdir()
    link.unlink(missing_ok=True)
    link.symlink_to(target)
    with pytest.raises(UserError, match=f"{name} is a link"):
        Run.open(tmp_path / "run", write=True)
    assert target.read_text() == "mine"


@pytest.mark.parametrize("name", ["log.txt", "state.json", "previews/x.png"])
def test_a_pipe_in_a_run_is_refused_and_not_waited_for(config: Config, tmp_path: Path, name: str) -> None:
    Run.create(config, "shapes", "", folder=tmp_path / "run").close()
    pipe = tmp_path / "run" / name
    pipe.unlink(missing_ok=True)
    os.mkfifo(pipe)
    with pytest.raises(UserError, match=f"{name} is no file but a pipe"):
        Run.open(tmp_path / "run", write=True)


def test_leftovers_of_killed_processes_go(config: Config, tmp_path: Path) -> None:
    """Of every folder of the run, when the next command takes it."""
    Run.create(config, "shapes", "", folder=tmp_path / "run").close()
    left = [
        tmp_path / "run" / name
        for name in (".a-99999991.tmp", "previews/.b-99999992.tmp", "measure/step_000001/.c-99999993.tmp")
    ]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    with Run.open(tmp_path / "run", write=True):
        assert not any(path.exists() for path in left)
