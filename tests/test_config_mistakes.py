"""Mistakes in configs: each is one line that names its place and its remedy."""

from __future__ import annotations

import dataclasses
import math
import time
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf, ValidationError

from carv3d.config import (
    PIPELINES,
    Config,
    LinearSchedule,
    find_config,
    load,
    to_yaml,
    validate,
)
from carv3d.config.keys import walk
from carv3d.config.suggestions import paths
from carv3d.errors import UserError
from carv3d.generation.config import require_prompt
from tests.config_keys import KINDS, kind_overrides, leaves, one_line

ALL_LEAVES = [
    pytest.param(kinds, *leaf, id=f"{kinds['scene']}-{leaf[0]}")
    for kinds in KINDS
    for leaf in leaves(load(None, kind_overrides(kinds)))
]


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


@settings(max_examples=80)
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
        ("guidance.noise=antithetic", "it is called 'guidance.coupling' now"),  # an older name
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
        LinearSchedule: ["fast", "", "[0, 1]", "true"],
        Literal["auto"] | list[str]: ["glb", "3", ""],
        int | Literal["auto"]: ["many", "2.5", "", "[1]", "true"],
        Literal["white", "random", "learned"] | list[float]: ["3", "", "[[1]]", "[a, b, c]"],
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


@pytest.mark.parametrize("section", [f.name for f in dataclasses.fields(Config) if f.name in to_yaml(load(None))])
def test_section_cannot_be_a_value(section: str) -> None:
    if not dataclasses.is_dataclass(getattr(Config(), section)):
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
        ("seed: &a {b: *a}\n", ":1: not valid YAML: the alias *a stands within what it stands for"),
        ("prompt: 7\n", ":1: prompt takes text, not 7; put it in quotes"),
        ("prompt: no\n", ":1: prompt takes text, not False; put it in quotes"),
        ("\tseed: 1\n", ":1: not valid YAML"),
        ("seed: 1\nprompt: ???\n", ":2: prompt is ???"),
        ("renderer:\n  background: [[1]]\n", ":2: renderer.background takes"),
        ("seed: 1\nthreads: ${resamples}\n", ":2: threads: Interpolation key 'resamples' not found; did you mean"),
        ("threads: ${qqqq}\n", ":1: threads: Interpolation key 'qqqq' not found; `carv3d config`"),
        ("guidance:\n  t_max: ${guidance.t_mi}\n", ":2: guidance.t_max.first: Interpolation key"),
        ("seed: ${guidance.scale}\n", "seed takes a whole number, not 3.0"),
        ("cameras:\n  fov: ${seed}\n", ":2: cameras.fov takes [low, high]"),
        ("teacher:\n  dtype: ${device}\n", ":2: teacher.dtype takes float32 or"),
        ("prompt: ${guidance}\n", ":1: prompt takes text, not {"),
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
    """Whether one value is wrong or several do not fit each other: the error names the key."""
    with pytest.raises(UserError) as error:
        validate(load(None, [override]))
    assert override.partition("=")[0].removesuffix(".end") in one_line(error)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed: 1\nguidance: {renders: 0}\n", ":2: guidance.renders must be from 1 to 4096, not 0"),
        ("scene:\n  bound: 0\n", ":2: scene.bound must be greater than 0, not 0"),
        ("views: {front: 200}\n", ":1: views.front must be from 0 to 180, not 200"),
        ("mesh: {threshold: 1.0}\n", ":1: mesh.threshold must be a share of the light"),
        ("optimizer: {betas: [0.9, .nan]}\n", ":1: optimizer.betas must be finite"),
        ("optimizer: {betas: [0.9, true]}\n", ":1: optimizer.betas takes two numbers"),
        ("guidance:\n  t_max: {last: 2}\n", ":2: guidance.t_max must be from 0 to 1, not 2"),
        ("guidance:\n  t_max: 1.5\n", ":2: guidance.t_max must be from 0 to 1, not 1.5"),
        ("scene: {type: gaussians, densify: {prune_opacity: 0.5}}\n", "must be at least 0 and less than 0.5"),
    ],
)
def test_value_out_of_range_in_a_file_has_its_line(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        load(file)
    assert expected in one_line(error)


@settings(max_examples=60)
@given(st.data())
def test_values_of_a_config_object_are_checked_too(data: st.DataObject) -> None:
    """What Python code sets is held against the same declaration as a file."""
    config = Config()
    path, field = data.draw(st.sampled_from([(p, f) for p, f, _ in walk(config) if f.hint in (int, float)]))
    low = field.key.ge if field.key.gt is None else field.key.gt
    section, _, name = path.rpartition(".")
    parent = attrgetter(section)(config) if section else config
    wrong = [math.nan, math.inf, "3"] + ([] if low is None else [field.hint(low - 1)])
    setattr(parent, name, data.draw(st.sampled_from(wrong)))
    with pytest.raises(UserError, match=rf"^{path} "):
        validate(config)


def test_prompt_is_asked_for_where_it_is_needed() -> None:
    config = load(None, ["prompt=  "])
    validate(config)
    with pytest.raises(UserError, match="no prompt"):
        require_prompt(config)
    assert require_prompt(load(None, ["prompt=a mug"])) == "a mug"


@pytest.mark.parametrize(
    "override",
    [
        "threads=1000000000",
        "mesh.resolution=1000000",
        "mesh.texture_size=1000000",
        "turntable.frames=100000000",
        "scene.resolution=100000",
        "cameras.height=1000000",
        "guidance.renders=1000000000",
        "training.steps=1000000000000",
    ],
)
def test_what_no_machine_can_do_is_out_of_range(override: str) -> None:
    """A mistyped number must not fill the memory or hang."""
    with pytest.raises(UserError, match=rf"{override.partition('=')[0]} must be from \d+ to \d+, not"):
        load(find_config("shapes"), ["prompt=a red cone", override])


def test_every_whole_number_has_an_upper_bound() -> None:
    """But the seeds, of which all 64 bits are used."""
    for of in PIPELINES.values():
        for path, field in paths(of()).items():
            if field.hint is int and not path.endswith("seed"):
                assert field.key.le is not None or field.key.lt is not None, path


BOMBS = {
    "aliases": "a: &a [x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
    "merges": "a: &a {k: 1}\n" + "".join(f"m{n}: &m{n} {{<<: [{', '.join(['*a'] * 900)}]}}\n" for n in range(9)),
    "an alias in itself": "a: &a [*a]\n",
    "depth": "a: " + "[" * 3000 + "]" * 3000 + "\n",
    "a number": f"seed: {'9' * 5000}\n",
    "a key that is a list": "seed: {[1]: 2}\n",
}


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS)
def test_a_text_that_stands_for_too_much_is_refused_at_once(text: str, tmp_path: Path) -> None:
    """One line with the place, in less time and memory than a config takes."""
    (tmp_path / "x.yaml").write_text(text)
    started = time.perf_counter()
    with pytest.raises(UserError, match=r"x\.yaml:\d+") as error:
        load(tmp_path / "x.yaml")
    assert time.perf_counter() - started < 2 and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["output_dir=" + "${device}" * 6000],
        ["output_dir=" + "${prompt_library}" * 100, "prompt_library=" + "${device}" * 100],
        ["output_dir=${a${seed}}"],
    ],
)
def test_references_that_stand_for_too_much_are_refused_at_once(overrides: list[str]) -> None:
    """Three texts of 100 references each are a million: found without writing them out."""
    with pytest.raises(UserError, match="refers to too much: write the text itself") as error:
        load(None, overrides)
    assert len(one_line(error)) < 300


@pytest.mark.parametrize("value", ["{[1]: 2}", "[" * 3000, "9" * 5000])
def test_a_value_that_is_no_value_is_one_line(value: str) -> None:
    """On the command line too."""
    with pytest.raises(UserError, match="seed"):
        load(find_config("shapes"), [f"seed={value}"])


def test_an_interrupted_config_is_no_mistake_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """OmegaConf raises errors of its own while a Ctrl-C passes through it."""

    def interrupted(*_: object, **__: object) -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise ValidationError("'NoneType' object has no attribute '_invalidate_flags_cache'")

    monkeypatch.setattr(OmegaConf, "to_container", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load(None)
