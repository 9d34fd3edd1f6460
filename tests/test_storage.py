"""Files that belong together: never old beside new, whenever the process is killed or the disk fails."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from carv3d.errors import UserError
from carv3d.runs.storage import finish_replacing, is_leftover, made_folder, replace_files, temporary_folder

OLD = {name: f"old {name}".encode() for name in ("mesh.obj", "mesh.mtl", "mesh.png")}
NEW = {name: f"new {name}".encode() for name in OLD}
CALLS = ("open", "fsync", "unlink", "replace")
"""The disk calls of `replace_files`: at each of them a process may be killed or the disk may fail."""


def killed_at(folder: Path, n: int) -> bool:
    """Replace the files in a forked process that ends without warning at the n-th disk call; whether it did."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    left = n

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os._exit(9)
            return real(*args, **options)

        return call

    try:
        for kind in CALLS:
            setattr(os, kind, dying(getattr(os, kind)))
        replace_files(folder, NEW)
    finally:
        os._exit(0)


def found(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def with_old(folder: Path) -> Path:
    folder.mkdir()
    for name, data in OLD.items():
        (folder / name).write_bytes(data)
    return folder


def one_export(files: dict[str, bytes]) -> bool:
    return files.items() <= OLD.items() or files.items() <= NEW.items()


def test_a_kill_at_any_call_mixes_nothing(tmp_path: Path) -> None:
    """At once there may be fewer files; the next process completes them or removes the leftovers."""
    outcomes = []
    for n in range(1, 100):
        folder = with_old(tmp_path / str(n))
        killed = killed_at(folder, n)
        files = found(folder)
        assert one_export(files), (n, files)
        finish_replacing(folder)
        assert found(folder) in (OLD, NEW), n
        outcomes.append(found(folder) == NEW)
        if not killed:
            break
        replace_files(folder, NEW)
        assert found(folder) == NEW
    assert not killed and not outcomes[0] and outcomes[-1]
    assert outcomes == sorted(outcomes), "once new, always new"
    assert outcomes.count(True) > 4, "some kills fell between the renames"


@pytest.mark.parametrize("kind", CALLS)
def test_a_failing_disk_mixes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """The n-th call of a kind fails: an error for the user, and the next try is as if nothing had happened."""
    for n in range(20):
        folder, calls, real = with_old(tmp_path / str(n)), iter(range(1000)), getattr(os, kind)

        def failing(
            *args: Any, turn: Iterator[int] = calls, last: int = n, call: Callable[..., Any] = real, **options: Any
        ) -> Any:
            if next(turn) == last:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return call(*args, **options)

        monkeypatch.setattr(os, kind, failing)
        try:
            replace_files(folder, NEW)
            done = True
        except (UserError, OSError):
            done = False
        monkeypatch.setattr(os, kind, real)
        assert one_export(found(folder))
        replace_files(folder, NEW)
        assert found(folder) == NEW
        if done:
            return
    raise AssertionError("it fails without end")


@pytest.mark.parametrize("text", ["", "{", '{".a-1.tmp": ', "[1]", '{"a": 5}', '{"../x": "../../y"}', "\xff"])
def test_a_list_that_is_not_whole_counts_as_none(tmp_path: Path, text: str) -> None:
    """Neither is anything outside the folder touched."""
    folder = with_old(tmp_path / "mesh")
    (tmp_path / "x").write_text("mine")
    (folder / ".replacing-99999999.tmp").write_text(text, encoding="latin-1")
    finish_replacing(folder)
    assert found(folder) == OLD and (tmp_path / "x").read_text() == "mine" and not list(folder.glob(".*"))


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of the same name beside the result, and folders in the system's temporary folder; those of others stay."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = [tmp_path / f".a.png-{ended.pid}.tmp", tmp_path / f".b.png-{ended.pid}.tmp"]
    for path in left:
        path.write_text("half")
    replace_files(tmp_path, {"a.png": b"new"})
    assert not left[0].exists() and left[1].exists()
    folders = [tmp_path / f"carv3d-{name}-x-{pid}.tmp" for name, pid in (("video", ended.pid), ("video", os.getppid()))]
    for folder in folders:
        folder.mkdir()
        (folder / "video.mp4").write_text("half")
    with temporary_folder("video") as own, temporary_folder("video") as second:
        assert own.is_dir() and second.is_dir()
    assert not own.exists() and not folders[0].exists() and folders[1].exists()


def test_a_folder_that_stays_empty_is_removed_again(tmp_path: Path) -> None:
    """With those above it that were made for it, and nothing else."""
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError), made_folder(tmp_path / "there" / "a" / "b"):
        assert (tmp_path / "there" / "a" / "b").is_dir()
        raise UserError("a mistake")
    assert not list((tmp_path / "there").iterdir())
    with made_folder(tmp_path / "there" / "c"):
        (tmp_path / "there" / "c" / "x").write_text("")
    with made_folder(tmp_path / "there"):
        pass
    assert (tmp_path / "there" / "c" / "x").exists()
    with (
        pytest.raises(UserError, match="a part of the path is a file"),
        made_folder(tmp_path / "there" / "c" / "x" / "y"),
    ):
        pass


def test_the_temporary_files_of_a_living_process_are_left_alone() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert not is_leftover(Path(f"/x/.mesh.glb-{child.pid}.tmp"))
    child.communicate(b"\n")
    assert is_leftover(Path(f"/x/.mesh.glb-{child.pid}.tmp"))
    assert is_leftover(Path(f"/x/.mesh.glb-{os.getpid()}.tmp")), "this one has no file open now"
