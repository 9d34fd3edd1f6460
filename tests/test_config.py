"""Configs: what is written is what is read, and a mistake is named with its place and its remedy."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tempfile
from itertools import cycle
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import yaml
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from carv3d.config import (
    PIPELINES,
    Config,
    Ramp,
    describe,
    find_config,
    load,
    require_prompt,
    schema,
    to_yaml,
    validate,
)
from carv3d.errors import UserError

KINDS = [
    {"scene": scene, "teacher": teacher}
    for scene, teacher in zip(schema.KINDS["scene"], cycle(schema.KINDS["teacher"]), strict=False)
]


def kind_overrides(kinds: dict[str, str]) -> list[str]:
    return [f"{name}.type={kind}" for name, kind in kinds.items()]


def leaves(section: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Every dotted key of a config object with its value and type, ramps both whole and in parts."""
    found = []
    for key, hint in get_type_hints(type(section)).items():
        value = getattr(section, key)
        if dataclasses.is_dataclass(value):
            found += leaves(value, f"{prefix}{key}.")
        if not dataclasses.is_dataclass(value) or isinstance(value, Ramp):
            found.append((prefix + key, value, hint))
    return found


ALL_LEAVES = [
    pytest.param(kinds, *leaf, id=f"{kinds['scene']}-{leaf[0]}")
    for kinds in KINDS
    for leaf in leaves(load(None, kind_overrides(kinds)))
]


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    message = str(error.value)
    assert "\n" not in message, "the command line prints one line"
    return message


# ----------------------------------------------------------------------------------------- reading


def test_defaults_are_valid_and_typed() -> None:
    """What the dataclasses say by default must pass our own checks, as objects and not as dictionaries."""
    config = load(None)
    validate(config)
    assert config == schema.Config()
    assert isinstance(config.guidance.t_max, Ramp)


def test_order_of_layers(tmp_path: Path) -> None:
    """An override beats the file, the file beats the base, the base beats the defaults."""
    file = tmp_path / "x.yaml"
    file.write_text("guidance: {resamples: 3, renders: 3}\n")
    base = {"guidance": {"resamples": 2, "renders": 2, "chunk": 2}}
    got = load(file, ["guidance.resamples=5"], base=base).guidance
    assert (got.resamples, got.renders, got.chunk, got.scale) == (5, 3, 2, schema.Guidance().scale)


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
    assert load(None, base=base).regularisers.opacity == Ramp(0, 2, 0.2, 0.5)
    assert load(None, ["regularisers.opacity=3"], base=base).regularisers.opacity == Ramp(3, 3, 0, 1)


def test_ramp_in_parts_keeps_the_rest() -> None:
    assert load(None, ["guidance.t_max.last=0.5"]).guidance.t_max == Ramp(0.98, 0.5)
    assert load(None, ["guidance.t_max={end: 0.5}", "guidance.t_max.last=0.4"]).guidance.t_max == Ramp(
        0.98, 0.4, 0.0, 0.5
    )


def test_ramp_values() -> None:
    """Flat, straight, flat; and with begin = end a jump."""
    ramp = Ramp(1.0, 3.0, 0.25, 0.75)
    assert [ramp.at(p) for p in (0, 0.25, 0.5, 0.75, 1)] == [1, 1, 2, 3, 3]
    assert [Ramp(1.0, 3.0, 0.5, 0.5).at(p) for p in (0.49, 0.5)] == [1, 3]


def test_interpolations_see_the_values_of_all_layers(tmp_path: Path) -> None:
    """In a file as in an override, of a whole value, a part of a text and an item of a list."""
    file = tmp_path / "x.yaml"
    file.write_text("prompt: no. ${seed}\ncameras: {width: '${.height}', fov: ['${views.front}', 50]}\n")
    config = load(file, ["seed=3", "cameras.height=32", "output_dir=out/${seed}", "threads=${seed}"])
    assert (config.prompt, config.output_dir, config.threads) == ("no. 3", "out/3", 3)
    assert (config.cameras.width, config.cameras.fov) == (32, [45.0, 50.0])
    assert load_text(to_yaml(config)) == config


def test_interpolation_of_a_ramp() -> None:
    """Of another ramp or of a number, and what it leaves open can still be changed in part."""
    base = {"guidance": {"t_max": "${guidance.t_min}"}, "regularisers": {"opacity": "${guidance.scale}"}}
    config = load(None, ["guidance.t_min={first: 0.1, end: 0.5}", "guidance.t_max.last=0.9"], base=base)
    assert config.guidance.t_max == Ramp(0.1, 0.9, 0.0, 0.5)
    assert config.regularisers.opacity == Ramp(3.0, 3.0)


def test_interpolation_outlives_another_kind() -> None:
    base = {"scene": {"bound": "${cameras.distance.0}", "resolution": "${mesh.resolution}"}}
    assert load(None, ["scene.type=hash_grid"], base=base).scene == schema.HashGrid(bound=3.0)


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
    assert config.scene == schema.HashGrid(levels=4)
    assert config.teacher == schema.ExactTeacher(views=7)


def test_another_kind_on_the_command_line_drops_what_only_the_files_kind_has(tmp_path: Path) -> None:
    """A config for one kind of scene must be of use with another; what both have is kept."""
    file = tmp_path / "x.yaml"
    file.write_text("scene: {bound: 2.0, resolution: 99}\n")
    assert load(file, ["scene.type=hash_grid"]).scene == schema.HashGrid(bound=2.0)


def test_empty_file_is_no_difference(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    for text in ("", "# nothing\n"):
        file.write_text(text)
        assert load(file) == schema.Config()


def test_does_not_import_torch() -> None:
    """`carv3d config` and an error in a config must come at once."""
    code = "import sys, carv3d.config as c; c.describe(c.load(None)); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


# ---------------------------------------------------------------------------------- mistyped keys


@pytest.mark.parametrize(("kinds", "key", "value", "hint"), ALL_LEAVES)
def test_mistyped_key_is_refused_with_the_right_one(kinds: dict[str, str], key: str, value: Any, hint: Any) -> None:
    """At every depth of every section, in a file and in an override."""
    wrong = key + key[-1]
    nested: Any = 1
    for part in reversed(wrong.split(".")):
        nested = {part: nested}
    for overrides, base in (([f"{wrong}=1"], None), ([], nested)):
        with pytest.raises(UserError) as error:
            load(None, kind_overrides(kinds) + overrides, base=base if base else None)
        message = one_line(error)
        section = wrong.rpartition(".")[0]  # one inside another may itself be of another kind
        assert f"unknown key {wrong!r}" in message or f"{wrong!r} is of" in message or f"{section!r} is of" in message
        if base is None:
            assert f"did you mean {key!r}" in message


@settings(max_examples=150)
@given(st.data())
def test_any_unknown_key_is_refused(data: st.DataObject) -> None:
    """Whatever is typed, a key that is not in the schema never goes unnoticed."""
    kinds, key, _, _ = data.draw(st.sampled_from(ALL_LEAVES)).values
    head, _, _ = key.rpartition(".")
    wrong = data.draw(st.text("abcdefghijklmnopqrstuvwxyz_.", min_size=1, max_size=12))
    path = f"{head}.{wrong}" if head else wrong
    known = {leaf.values[1] for leaf in ALL_LEAVES if leaf.values[0] == kinds}
    if path in known or any(other.startswith(f"{path}.") for other in known):
        return
    with pytest.raises(UserError, match=r"unknown key|is of"):
        load(None, [*kind_overrides(kinds), f"{path}=1"])


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("resamples=8", "'guidance.resamples'"),  # forgot the section
        ("guidance.lr=1", "'optimizer.lr'"),  # the wrong section
        ("guidence.resamples=8", "'guidance'"),  # a mistyped section
        ("regularizers.opacity=1", "'regularisers'"),  # spelt the other way
        ("guidance.resamples.k=8", "'guidance.resamples'"),  # too deep
        ("guidance.t_max.lst=1", "'guidance.t_max.last'"),  # inside a ramp
        ("scene.levels=3", "scene.type=hash_grid"),  # of another kind
        ("qqqq=1", "carv3d config"),  # like nothing at all
    ],
)
def test_suggestion(override: str, expected: str) -> None:
    with pytest.raises(UserError) as error:
        load(None, [override])
    assert expected in one_line(error)


def test_error_points_at_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("seed: 1\nguidance:\n  resamples: 4\n  resampels: 8\n")
    with pytest.raises(UserError) as error:
        load(file)
    assert one_line(error).startswith(f"{file}:4: unknown key 'guidance.resampels'")


def test_dotted_key_in_yaml_is_explained(tmp_path: Path) -> None:
    """It works on the command line, so people write it in files."""
    file = tmp_path / "x.yaml"
    file.write_text("guidance.resamples: 4\n")
    with pytest.raises(UserError, match="one key inside the other"):
        load(file)


# ------------------------------------------------------------------------------------ wrong values


def wrong_values(hint: Any) -> list[str]:
    if get_origin(hint) is Literal:
        return ["nonsense", "3", "", "[1]"]
    return {
        bool: ["maybe", "3.5", "", "[true]"],
        int: ["many", "2.5", "", "[1]", "true"],
        float: ["much", "", "[1]"],
        str: [],  # any text is text
        list[float]: ["1", "[a, b]", "", "[[1]]"],
        list[str]: ["glb", ""],
        Ramp: ["fast", "", "[0, 1]", "true"],
        Any: [],  # `renderer.background`, checked by `validate`
    }[hint]


@pytest.mark.parametrize(("kinds", "key", "value", "hint"), ALL_LEAVES)
def test_wrong_value_names_key_and_what_is_accepted(kinds: dict[str, str], key: str, value: Any, hint: Any) -> None:
    for wrong in wrong_values(hint):
        if key.endswith(".type") and not wrong:
            continue
        with pytest.raises(UserError) as error:
            load(None, [*kind_overrides(kinds), f"{key}={wrong}"])
        message = one_line(error)
        assert f"{key} takes " in message
        if get_origin(hint) is Literal and not key.endswith(".type"):
            assert all(str(choice) in message for choice in get_args(hint))


@pytest.mark.parametrize(
    "section", [f.name for f in dataclasses.fields(schema.Config) if f.name in to_yaml(load(None))]
)
def test_section_cannot_be_a_value(section: str) -> None:
    if not dataclasses.is_dataclass(getattr(schema.Config(), section)):
        return
    for wrong in ("3", "", "[1]"):
        with pytest.raises(UserError, match=f"{section} takes a mapping"):
            load(None, [f"{section}={wrong}"])


@pytest.mark.parametrize("override", ["guidance.resamples", "=3", "", "--seed"])
def test_override_without_equals(override: str) -> None:
    with pytest.raises(UserError, match="not key=value"):
        load(None, [override])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed: 1\nguidance: [1\nviews: {}\n", ":3: not valid YAML"),
        ("seed: 1\nseed: 2\n", ":2: not valid YAML: 'seed' is here twice"),
        ("- seed\n", "a config is a mapping"),
        ("seed: !!python/object:os.system ls\n", ":1: not valid YAML"),
        ("seed: 2020-13-45\n", "not valid YAML"),
        ("seed: &a {b: *a}\n", ":1: unknown key 'seed.b'"),
        ("prompt: 7\n", ":1: prompt takes text, not 7; put it in quotes"),
        ("prompt: no\n", ":1: prompt takes text, not False; put it in quotes"),
        ("\tseed: 1\n", ":1: not valid YAML"),
        ("seed: 1\nprompt: ???\n", ":2: prompt is ???"),
        ("renderer:\n  background: [[1]]\n", ":2: renderer.background takes"),
        ("seed: 1\nthreads: ${resamples}\n", ":2: threads: Interpolation key 'resamples' not found; did you mean"),
        ("threads: ${qqqq}\n", ":1: threads: Interpolation key 'qqqq' not found; `carv3d config`"),
        ("guidance:\n  t_max: ${guidance.t_mi}\n", ":2: guidance.t_max.first: Interpolation key"),
        ("seed: ${guidance.scale}\n", "to Integer; it takes a whole number"),
        ("cameras:\n  fov: ${seed}\n", ":2: cameras.fov: "),  # OmegaConf does not say which key
        ("teacher:\n  dtype: ${device}\n", ":2: teacher.dtype: "),
        ("prompt: ${guidance}\n", "[...]; it takes text"),
        ("seed: ${threads}\nthreads: ${seed}\n", "Recursive interpolation"),
        ("guidance: ${scene}\n", ":1: guidance takes a mapping"),
        ("scene: {type: '${device}'}\n", ":1: scene.type takes"),
        ("seed: 1\nprompt: costs ${5\n", ":2: prompt: "),
    ],
)
def test_bad_file(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        load(file)
    assert expected in one_line(error)


def test_file_that_is_missing_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        load(tmp_path / "x.yaml")
    with pytest.raises(UserError, match="is a directory"):
        load(tmp_path)
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not a text file"):
        load(tmp_path / "x.yaml")


@pytest.mark.parametrize(
    "override",
    [
        "guidance.resamples=0",
        "guidance.resamples=4.5",
        "guidance.resamples=many",
        "guidance.renders=0",
        "guidance.t_min=-0.1",
        "guidance.t_max=1.1",
        "guidance.t_min=0.98",  # no timestep is left
        "guidance.t_max={last: 0.01}",  # none is left in the end
        "guidance.t_max={last: 0.01, begin: 1.0}",  # nor by a jump
        "guidance.scale=.nan",
        "optimizer.lr.end=1.5",
        "optimizer.lr={begin: 0.7, end: 0.3}",
        "optimizer.lr=0",
        "optimizer.betas=[0.9, 1.0]",
        "optimizer.betas=[0.9]",
        "regularisers.opacity=-1",
        "cameras.elevation=[0, 90]",
        "cameras.elevation=[30, 10]",
        "cameras.elevation=[30]",
        "cameras.azimuth=[-180, 181]",
        "cameras.distance=[0, 3]",
        "cameras.fov=[40, 180]",
        "cameras.width=0",
        "renderer.background=[0, 0, 2]",
        "renderer.background=[0, 0]",
        "renderer.background=pink",
        "renderer.samples=0",
        "scene.resolution=1",
        "scene.bound=0",
        "training.steps=0",
        "training.keep_checkpoints=0",
        "mesh.formats=[glb, stl]",
        "turntable.frames=0",
        "device=gpu",
        "seed=-1",
        "teacher.path=",
    ],
)
def test_value_out_of_range_is_refused(override: str) -> None:
    """`load` takes it, for its type is right; `validate` names it."""
    config = load(None, [override])
    with pytest.raises(UserError) as error:
        validate(config)
    assert override.partition("=")[0].removesuffix(".end") in one_line(error)


def test_prompt_is_asked_for_where_it_is_needed() -> None:
    config = load(None, ["prompt=  "])
    validate(config)
    with pytest.raises(UserError, match="no prompt"):
        require_prompt(config)
    assert require_prompt(load(None, ["prompt=a mug"])) == "a mug"


# ----------------------------------------------------------------------------------------- writing

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=20) | st.sampled_from(
    ["${seed}", "\\${", "???", "\\???", "1e5", "null", "0x10", "12:30", "a: b # c", "'", '"', "\n", " x ", "\\"]
)


def values(hint: Any) -> st.SearchStrategy[Any]:
    if dataclasses.is_dataclass(hint):
        return sections(hint)
    if get_origin(hint) is Literal:
        return st.sampled_from(get_args(hint))
    background = st.sampled_from(["white", "random"]) | st.lists(NUMBERS, min_size=3, max_size=3)
    return {
        bool: st.booleans(),
        int: st.integers(-(2**63), 2**63),
        float: NUMBERS,
        str: TEXTS,
        list[float]: st.lists(NUMBERS, max_size=3),
        list[str]: st.lists(TEXTS, max_size=3),
        Any: background,
    }[hint]


def sections(of: Any) -> st.SearchStrategy[Any]:
    hints = get_type_hints(of)
    if of is schema.Config:
        special = {k: st.one_of([sections(kind) for kind in kinds.values()]) for k, kinds in schema.KINDS.items()}
        return st.builds(of, **({k: values(h) for k, h in hints.items() if k not in special} | special))
    return st.builds(of, **{key: values(hint) for key, hint in hints.items()})


@settings(max_examples=60, phases=[Phase.explicit, Phase.generate])  # shrinking takes long
@given(sections(schema.Config))
def test_config_survives_writing_and_reading(config: schema.Config) -> None:
    """A run is repeated from its config.yaml: not a bit of any value may change on the way."""
    for write in (to_yaml, describe):
        assert load_text(write(config)) == config


def load_text(text: str) -> schema.Config:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(text, encoding="utf-8")
        return load(file)


def test_description_has_every_key_with_its_comment() -> None:
    """The source's comments are the documentation: each must arrive, on the line of its key."""
    text = describe()
    assert "resamples: 4  # K, (t, eps) draws a render; auto" in text
    assert "  strata: render  # render: K strata a render; global: R*K a step; none | render | global" in text
    for kinds in KINDS:
        for key, _, _ in leaves(load(None, kind_overrides(kinds))):
            section, _, name = key.rpartition(".")  # a ramp's parts are not written out
            assert f"{name}: " in text or f"{section.rpartition('.')[2]}: " in text


def test_other_kinds_in_the_description_can_be_uncommented() -> None:
    blocks = [block.splitlines() for block in describe().split("\n\n") if block.startswith("# Another scene:")]
    written = ["\n".join(line.removeprefix("# ") for line in block[2:]) for block in blocks]
    found = [load(None, base=yaml.safe_load(text)).scene for text in written]
    assert found == [schema.HashGrid(), schema.Gaussians()]


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
