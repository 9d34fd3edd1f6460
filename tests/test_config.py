"""Configs: what is written is what is read."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tempfile
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import pytest
import yaml
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from carv3d import registry
from carv3d.config import (
    PIPELINES,
    Config,
    LinearSchedule,
    describe,
    find_config,
    load,
    to_yaml,
    validate,
)
from carv3d.config.components import config_of
from carv3d.config.keys import Key, fields_of
from carv3d.errors import UserError
from carv3d.generation.config import GuidanceConfig
from carv3d.scenes.config import GaussiansConfig, HashGridConfig
from carv3d.teachers.config import ExactTeacherConfig
from tests.config_keys import KINDS, kind_overrides, leaves

# ----------------------------------------------------------------------------------------- reading


def test_defaults_are_valid_and_typed() -> None:
    """What the dataclasses say by default must pass our own checks, as objects and not as dictionaries."""
    config = load(None)
    validate(config)
    assert config == Config()
    assert isinstance(config.guidance.t_max, LinearSchedule)


def test_order_of_layers(tmp_path: Path) -> None:
    """An override beats the file, the file beats the base, the base beats the defaults."""
    file = tmp_path / "x.yaml"
    file.write_text("guidance: {resamples: 3, renders: 3}\n")
    base = {"guidance": {"resamples": 2, "renders": 2, "chunk": 2}}
    got = load(file, ["guidance.resamples=5"], base=base).guidance
    assert (got.resamples, got.renders, got.chunk, got.scale) == (5, 3, 2, GuidanceConfig().scale)


def test_overrides_are_yaml_and_the_last_one_counts() -> None:
    config = load(None, ["cameras.elevation=[-10, 45]", "optimizer.eps=1e-8", "force=true", "seed=1", "seed=2"])
    assert config.cameras.elevation == [-10.0, 45.0]
    assert all(isinstance(angle, float) for angle in config.cameras.elevation)
    assert (config.optimizer.eps, config.force, config.seed) == (1e-8, True, 2)
    assert load(None, ["guidance.scale=1E2"]).guidance.scale == 100.0  # a string in YAML 1.1


@pytest.mark.parametrize(
    "text",
    ["a red chair", "a cat: on a mat", "no", "7", "[a", "50% = half # x", "${seed}", "???", ""],
)
def test_prompt_on_the_command_line_needs_no_quotes(text: str) -> None:
    """A prompt is text whatever YAML would make of it, also after it went through a run's config.yaml."""
    config = load(None, [f"prompt={text}"])
    assert config.prompt == text
    assert load_text(to_yaml(config)).prompt == text


def test_quoted_prompt_is_unquoted() -> None:
    assert load(None, ["prompt='a chair'"]).prompt == "a chair"
    assert load(None, ["prompt='a ${seed}'"]).prompt == "a ${seed}"


def test_ramp_as_one_number_holds_all_through_the_run() -> None:
    """Also over a ramp from the file: nothing of that one may stay."""
    base = {"regularisers": {"opacity": {"first": 0, "last": 2, "begin": 0.2, "end": 0.5}}}
    assert load(None, base=base).regularisers.opacity == LinearSchedule(0, 2, 0.2, 0.5)
    assert load(None, ["regularisers.opacity=3"], base=base).regularisers.opacity == LinearSchedule(3, 3, 0, 1)


def test_ramp_in_parts_keeps_the_rest() -> None:
    assert load(None, ["guidance.t_max.last=0.5"]).guidance.t_max == LinearSchedule(0.98, 0.5)
    assert load(None, ["guidance.t_max={end: 0.5}", "guidance.t_max.last=0.4"]).guidance.t_max == LinearSchedule(
        0.98, 0.4, 0.0, 0.5
    )


def test_ramp_values() -> None:
    """Flat, straight, flat; and with begin = end a jump."""
    ramp = LinearSchedule(1.0, 3.0, 0.25, 0.75)
    assert [ramp.at(p) for p in (0, 0.25, 0.5, 0.75, 1)] == [1, 1, 2, 3, 3]
    assert [LinearSchedule(1.0, 3.0, 0.5, 0.5).at(p) for p in (0.49, 0.5)] == [1, 3]


def test_interpolations_see_the_values_of_all_layers(tmp_path: Path) -> None:
    """In a file as in an override, of a whole value, a part of a text and an item of a list."""
    file = tmp_path / "x.yaml"
    file.write_text("prompt: no. ${seed}\ncameras: {width: '${.height}', fov: ['${views.front}', 50]}\n")
    config = load(file, ["seed=3", "cameras.height=32", "output_dir=out/${seed}", "threads=${seed}"])
    assert (config.prompt, config.output_dir, config.threads) == ("no. 3", "out/3", 3)
    assert (config.cameras.width, config.cameras.fov) == (32, [45.0, 50.0])
    assert load_text(to_yaml(config)) == config


def test_a_config_on_top_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`base` is read first: a file beside it, or a config by name; what is resolved has no `base`."""
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "low.yaml").write_text("base: shapes\nseed: 1\nguidance: {scale: 9.0}\n")
    (tmp_path / "far" / "high.yaml").write_text("base: low.yaml\nseed: 2\nscene: gaussians\n")
    config = load(tmp_path / "far" / "high.yaml", ["guidance.resamples=8"])
    shapes = load(find_config("shapes"))
    assert (config.seed, config.guidance.scale, config.guidance.resamples) == (2, 9.0, 8)
    assert config.scene.type == "gaussians" and config.optimizer == shapes.optimizer
    assert "base:" not in to_yaml(config) and load_text(to_yaml(config)) == config


@pytest.mark.parametrize(
    "text, said",
    [
        ("seed: 1\nbase: nowhere\n", r"one\.yaml:2: no config 'nowhere'"),
        ("base: [a]\n", r"one\.yaml:1: base must be the name of a config, not \['a'\]"),
        ("base: one.yaml\n", r"one\.yaml:1: base 'one\.yaml' leads back"),
        ("base: two.yaml\n", r"two\.yaml:1: base 'one\.yaml' leads back"),
        ("base: three.yaml\n", r"three\.yaml:1: .*unknown key"),
    ],
)
def test_a_base_that_cannot_be_used(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text(text)
    (tmp_path / "two.yaml").write_text("base: one.yaml\n")
    (tmp_path / "three.yaml").write_text("sed: 1\n")
    with pytest.raises(UserError, match=said):
        load(tmp_path / "one.yaml")


def test_interpolation_of_a_ramp() -> None:
    """Of another ramp or of a number, and what it leaves open can still be changed in part."""
    base = {"guidance": {"t_max": "${guidance.t_min}"}, "regularisers": {"opacity": "${guidance.scale}"}}
    config = load(None, ["guidance.t_min={first: 0.1, end: 0.5}", "guidance.t_max.last=0.9"], base=base)
    assert config.guidance.t_max == LinearSchedule(0.1, 0.9, 0.0, 0.5)
    assert config.regularisers.opacity == LinearSchedule(3.0, 3.0)


def test_interpolation_outlives_another_kind() -> None:
    base = {"scene": {"bound": "${cameras.distance.0}", "resolution": "${mesh.resolution}"}}
    assert load(None, ["scene.type=hash_grid"], base=base).scene == HashGridConfig(bound=3.0)


def test_escaped_interpolation_is_text() -> None:
    assert load_text(r"prompt: a \${seed} ${seed}").prompt == "a ${seed} 0"


@pytest.mark.parametrize(
    "override", ["output_dir=???", "seed=???", "mesh.formats=['???']", "renderer.background='???'"]
)
def test_missing_value_is_refused(override: str) -> None:
    """OmegaConf would leave out such a value without a word."""
    with pytest.raises(UserError, match=r"is \?\?\?|takes a list"):
        load(None, [override])


def test_kind_picks_the_dataclass() -> None:
    config = load(None, ["scene.levels=4", "scene.type=hash_grid", "teacher={type: exact, views: 7}"])
    assert config.scene == HashGridConfig(levels=4)
    assert config.teacher == ExactTeacherConfig(views=7)


def test_another_kind_on_the_command_line_drops_what_only_the_files_kind_has(tmp_path: Path) -> None:
    """A config for one kind of scene must be of use with another; what both have is kept."""
    file = tmp_path / "x.yaml"
    file.write_text("scene: {bound: 2.0, resolution: 99}\n")
    assert load(file, ["scene.type=hash_grid"]).scene == HashGridConfig(bound=2.0)


def test_empty_file_is_no_difference(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    for text in ("", "# nothing\n"):
        file.write_text(text)
        assert load(file) == Config()


def test_does_not_import_torch() -> None:
    """`carv3d config` and an error in a config must come at once."""
    code = "import sys, carv3d.config as c; c.describe(c.load(None)); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


# ----------------------------------------------------------------------------------------- writing

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=20) | st.sampled_from(
    ["${seed}", "\\${", "???", "\\???", "1e5", "null", "0x10", "12:30", "a: b # c", "'", '"', "\n", " x ", "\\"]
)


def numbers(key: Key, kind: type[Any]) -> st.SearchStrategy[Any]:
    """Numbers within a key's limits."""
    low, high = (key.ge if key.gt is None else key.gt), (key.le if key.lt is None else key.lt)
    if kind is int:
        low, high = (None if end is None else int(end) for end in (low, high))
        return st.integers(-(2**63) if low is None else low, 2**63 if high is None else high - (key.lt is not None))
    return st.floats(
        low, high, exclude_min=key.gt is not None, exclude_max=key.lt is not None, allow_nan=False, allow_infinity=False
    )


def schedules(key: Key) -> st.SearchStrategy[LinearSchedule]:
    ends = st.lists(st.floats(0, 1), min_size=2, max_size=2).map(sorted)
    value = numbers(key, float)
    return st.builds(lambda first, last, at: LinearSchedule(first, last, *at), value, value, ends)


def values(hint: Any, key: Key) -> st.SearchStrategy[Any]:
    if hint is LinearSchedule:
        return schedules(key)
    if dataclasses.is_dataclass(hint):
        return sections(hint)
    if get_origin(hint) is Literal:
        return st.sampled_from(get_args(hint))
    if get_origin(hint) in (Union, types.UnionType):
        return st.one_of([values(part, key) for part in get_args(hint)])
    if hint in (int, float):
        return numbers(key, hint)
    if get_origin(hint) is list:
        return st.lists(values(get_args(hint)[0], key), min_size=key.length or 0, max_size=key.length or 3)
    if key.pattern:
        return st.from_regex(key.pattern, fullmatch=True).filter(lambda text: not any(map(_is_surrogate, text)))
    return st.booleans() if hint is bool else TEXTS


def _is_surrogate(character: str) -> bool:
    return 0xD800 <= ord(character) < 0xE000


def sections(of: Any) -> st.SearchStrategy[Any]:
    found = {}
    for name, field in fields_of(of).items():
        if field.component:
            kind = field.component.kind
            found[name] = st.one_of([sections(config_of(kind, other)) for other in registry.names(kind)])
        elif name == "type" and field.hint is str:  # a component that got its name from the registry
            found[name] = st.just(of().type)
        else:
            found[name] = values(field.hint, field.key)
    return st.builds(of, **found)


@settings(max_examples=12, phases=[Phase.explicit, Phase.generate])  # shrinking takes long
@given(sections(Config))
def test_config_survives_writing_and_reading(config: Config) -> None:
    """A run is repeated from its config.yaml: not a bit of any value may change on the way."""
    for write in (to_yaml, describe):
        assert load_text(write(config)) == config


def load_text(text: str) -> Config:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(text, encoding="utf-8")
        return load(file)


def test_description_has_every_key_with_its_comment() -> None:
    """Meaning, choices and range of each key, on its line."""
    text = describe()
    assert "resamples: 4  # K, (t, eps) draws a render; auto" in text
    assert (
        "  strata: render  # of timesteps; render: K strata a render; global: R*K a step; none | render | global"
        in text
    )
    assert "  renders: 1  # R, renders a step; from 1 to 4096" in text
    for kinds in KINDS:
        for key, _, _ in leaves(load(None, kind_overrides(kinds))):
            section, _, name = key.rpartition(".")  # a ramp's parts are not written out
            assert f"{name}: " in text or f"{section.rpartition('.')[2]}: " in text


def test_other_kinds_in_the_description_can_be_uncommented() -> None:
    blocks = [block.splitlines() for block in describe().split("\n\n") if block.startswith("# Another scene:")]
    written = ["\n".join(line.removeprefix("# ") for line in block[2:]) for block in blocks]
    found = [load(None, base=yaml.safe_load(text)).scene for text in written]
    assert found == [HashGridConfig(), GaussiansConfig()]


# ----------------------------------------------------------------------------------------- finding


def test_shipped_config_is_found_by_name_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed or cloned, and whatever the current directory is."""
    monkeypatch.chdir(tmp_path)
    for name in ("shapes", "shapes.yaml", "configs/shapes", "configs/shapes.yaml"):
        path = find_config(name)
        assert path.name == "shapes.yaml"
        validate(load(path))


def test_own_config_comes_before_the_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "shapes.yaml").write_text("seed: 1\n")
    assert load(find_config("shapes")).seed == 1
    (tmp_path / "shapes.yaml").write_text("seed: 2\n")
    assert load(find_config("shapes")).seed == 2
    assert load(find_config(str(tmp_path / "configs" / "shapes.yaml"))).seed == 1


@pytest.mark.parametrize("name", ["shape", "shapes.yml", "no/such/file.yaml", "", "/", ".."])
def test_config_that_is_not_there(name: str) -> None:
    with pytest.raises(UserError, match="no config"):
        find_config(name)


def test_near_name_is_suggested() -> None:
    with pytest.raises(UserError, match="did you mean 'shapes'"):
        find_config("shape")


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[1] / "configs").rglob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_config_is_valid(path: Path) -> None:
    """Those of another verb than generate begin with its name."""
    validate(load(path, of=PIPELINES.get(path.stem.partition("-")[0], Config)))
