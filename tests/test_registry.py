"""Components by name: entry points of packages, full names, and what goes wrong with them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from carv3d import registry
from carv3d.config import load, to_yaml, validate
from carv3d.errors import UserError
from tests.test_cli import carv3d

MODULE = """
from dataclasses import dataclass, field

@dataclass
class Inner:
    depth: int = 2

@dataclass
class Thing:
    size: float = 1.5  # metres
    name: str = "x"
    inner: Inner = field(default_factory=Inner)

    def build(self, context):
        return self

    def rules(self, prefix):
        yield f"{prefix}.size", self.size, self.size > 0, "greater than 0"

@dataclass
class NoDefault:
    size: float

class Plain:
    pass
"""

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts a package with entry points on the path, as pip would."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(package: str, points: dict[str, str], text: str = MODULE) -> None:
        (tmp_path / f"{package}.py").write_text(text)
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        groups: dict[str, list[str]] = {}
        for point, value in points.items():
            kind, name = point.split("/")
            groups.setdefault(f"carv3d.{kind}", []).append(f"{name} = {value}")
        lines = [line for group, rows in groups.items() for line in (f"[{group}]", *rows)]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
        importlib.invalidate_caches()
        registry._announced.cache_clear()

    yield make
    registry._announced.cache_clear()
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


def test_every_own_component_is_there() -> None:
    """The table of carv3d's own names has no stale entry."""
    for kind in registry.KINDS:
        for name in registry.names(kind):
            assert registry.find(kind, name) is not None


def test_an_installed_package_is_found_by_its_short_name(install: Install) -> None:
    """A config takes it, with its own keys, nested ones too, and writes it out."""
    install("mypackage", {"scene/thing": "mypackage:Thing"})
    assert "thing" in registry.names("scene")
    config = load(None, ["scene=thing", "scene.size=2", "scene.inner.depth=5"])
    assert (config.scene.type, config.scene.size, config.scene.inner.depth) == ("thing", 2.0, 5)
    assert "type: thing" in to_yaml(config)
    with pytest.raises(UserError, match=r"scene\.size must be greater than 0"):
        config.scene.size = -1.0
        validate(config)


def test_an_importable_class_is_found_by_its_full_name(install: Install, tmp_path: Path) -> None:
    """In a YAML file, with the same strictness as carv3d's own sections; and it survives writing and reading."""
    install("other", {})
    file = tmp_path / "x.yaml"
    file.write_text("teacher:\n  type: other.Thing\n  size: 3\n")
    config = load(file)
    assert config.teacher.size == 3.0 and config.teacher.type == "other.Thing"
    file.write_text(to_yaml(config))
    assert load(file) == config
    for override, message in (
        ("teacher.sise=2", r"did you mean 'teacher\.size'"),
        ("teacher.size=big", r"teacher\.size takes a number, not 'big'"),
        ("teacher.inner.depth=1.5", r"teacher\.inner\.depth takes a whole number"),
        ("teacher.inner=3", r"teacher\.inner takes a mapping"),
        ("teacher.path=x", r"'teacher\.path' is of teacher\.type=diffusers, but the type is other\.Thing"),
    ):
        with pytest.raises(UserError, match=message):
            load(file, [override])


def test_a_change_of_kind_keeps_what_both_have(install: Install) -> None:
    install("mine", {})
    config = load(None, ["scene.type=mine.Thing"], base={"scene": {"bound": 2.0}})
    assert not hasattr(config.scene, "bound")
    assert load(None, ["scene=gaussians"], base={"scene": {"bound": 2.0}}).scene.bound == 2.0


@pytest.mark.parametrize(
    "text, name, message",
    [
        ("import nowhere_at_all", "bad.Thing", r"cannot be imported: ModuleNotFoundError: .*nowhere_at_all"),
        ("1 / 0", "bad.Thing", "cannot be imported: ZeroDivisionError: division by zero"),
        ("raise SystemError('a\\nb')", "bad.Thing", "SystemError: a b"),
        (MODULE, "bad.Thong", "AttributeError"),
        (MODULE, "bad.NoDefault", "its field 'size' has no default"),
        (MODULE, "bad.Plain", "is no dataclass"),
        (MODULE, "absent.Thing", "No module named 'absent'; install it, or put its folder on PYTHONPATH"),
    ],
)
def test_a_plug_in_that_will_not_do_is_one_line(install: Install, text: str, name: str, message: str) -> None:
    """Its name and the reason, and where it was asked for."""
    install("bad", {}, text)
    with pytest.raises(UserError, match=message) as caught:
        load(None, [f"scene.type={name}"])
    assert "\n" not in str(caught.value) and name in str(caught.value) and "scene.type" in str(caught.value)


def test_a_name_that_two_packages_claim(install: Install) -> None:
    """Neither is taken in silence, nor is carv3d's own replaced; the full name decides."""
    for package in ("first", "second"):
        install(package, {"scene/shared": f"{package}:Thing", "scene/voxel_grid": f"{package}:Thing"})
    with pytest.raises(UserError, match=r"'shared' is claimed by first and second.*full name, such as \w+\.Thing"):
        load(None, ["scene=shared"])
    with pytest.raises(UserError, match="'voxel_grid' is claimed by carv3d and first and second"):
        registry.find("scene", "voxel_grid")
    assert load(None, ["scene=second.Thing"]).scene.size == 1.5


@pytest.mark.parametrize(
    "override, message",
    [
        ("scene=voxelgrid", "scene.type takes voxel_grid or .* not 'voxelgrid'; did you mean 'voxel_grid'"),
        ("guidance.coupling=antithethic", "did you mean 'antithetic'"),
        ("guidance.proposal=importanse", "did you mean 'importance'"),
        ("guidance.coupling=nowhere.thing", "No module named 'nowhere'"),
    ],
)
def test_an_unknown_name_has_a_suggestion(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        validate(load(None, [override]))


def test_registering_by_hand() -> None:
    """For notebooks; carv3d's own names cannot be taken."""
    with pytest.raises(ValueError, match="carv3d's own"):
        registry.register("coupling", "antithetic", object())
    with pytest.raises(ValueError, match="no kind of component 'colour'"):
        registry.register("colour", "red", object())


WRONG = """
from __future__ import annotations
from dataclasses import dataclass
from pathlib import Path
from carv3d.objectives import Objective

@dataclass
class NoBuild:
    size: float = 1.0

@dataclass
class Optional:
    count: int | None = None
    def build(self, context): ...

@dataclass
class Pair:
    size: tuple[int, int] = (3, 4)
    def build(self, context): ...

@dataclass
class File:
    file: Path = Path("x")
    def build(self, context): ...

@dataclass(frozen=True)
class Frozen:
    size: float = 1.0
    def build(self, context): ...

@dataclass
class Number:
    def build(self, context):
        return 3

@dataclass
class Abstract(Objective):
    share: float = 0.5

SEVEN = 7
"""


@pytest.mark.parametrize(
    "override, said",
    [
        ("scene=wrong.NoBuild", r"'wrong\.NoBuild' has no method build\(context\)"),
        ("scene=wrong.Optional", r"its field 'count' is a int \| None; a key can be int, float"),
        ("cameras=wrong.Pair", r"its field 'size' is a tuple\[int, int\]"),
        ("teacher=wrong.File", "its field 'file' is a Path"),
        ("renderer=wrong.Frozen", "is a frozen dataclass"),
        ("guidance.objective=wrong.Number", r"is no subclass of carv3d\.objectives\.Objective"),
        ("guidance.objective=wrong.Abstract", "has no method residual"),
        ("guidance.proposal=wrong.SEVEN", "guidance.proposal must be a function"),
        ("guidance.coupling=wrong.SEVEN", "guidance.coupling must be a function"),
    ],
)
def test_components_of_the_wrong_kind_are_one_line(install: Install, override: str, said: str) -> None:
    install("wrong", {}, WRONG)
    with pytest.raises(UserError, match=said):
        validate(load(None, ["prompt=x", override]))


@pytest.mark.parametrize(
    "key, said",
    [
        ("scene", "scene.type=wrong.Number makes a int, and not a carv3d.scenes.base.Scene"),
        ("renderer", "renderer.type=wrong.Number makes a int"),
        ("cameras", "cameras.type=wrong.Number makes a int"),
        ("teacher", "teacher.type=wrong.Number makes no teacher: it has no schedule, branches"),
    ],
)
def test_what_builds_something_else_leaves_no_folder(
    install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, said: str
) -> None:
    install("wrong", {}, WRONG)
    run = tmp_path / "run"
    words = ["teacher.type=exact", "teacher.views=20", "mesh.formats=[]", "regularisers.total_variation=0"]
    words = [word for word in words if not word.startswith(key)]
    code, _, err = carv3d("generate", "a red cone", *words, f"{key}=wrong.Number", "--output", str(run), capsys=capsys)
    assert code == 2 and said in " ".join(err.split()) and not run.exists()


def test_a_broken_package_does_not_hide_the_keys(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install("broken", {"scene/brok": "broken:Thing"}, "raise RuntimeError('no such driver')\n")
    code, out, _ = carv3d("config", capsys=capsys)
    assert code == 0 and "Another scene, which cannot be used: the scene 'brok' of the package broken" in out
