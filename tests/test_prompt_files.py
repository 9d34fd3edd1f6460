"""Prompt files, and prompts that are looked up in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from carv3d.errors import UserError
from carv3d.prompts.files import DEFAULT_PROMPTS, LIBRARY, find_prompts, look_up, read_prompts
from carv3d.shapes import parse
from tests.test_cli import QUICK, carv3d


def test_prompt_files(tmp_path: Path) -> None:
    """Blank lines and comments are skipped, white space is made single, the order is kept."""
    file = tmp_path / "prompts.txt"
    file.write_text("# mine\n\n a  red\tcone \na blue cube\n")
    assert read_prompts(file) == ["a red cone", "a blue cube"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("a red cone\n\nA  Red Cone\n", "lines 1 and 3 are the same prompt 'A Red Cone'"),
        ("# none\n\n", "has no prompts"),
        (None, "no prompt file"),
    ],
)
def test_prompt_files_that_cannot_be_used(tmp_path: Path, text: str | None, message: str) -> None:
    file = tmp_path / "prompts.txt"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=message):
        read_prompts(find_prompts(str(file)))


def test_default_prompts_are_of_the_built_in_world() -> None:
    prompts = read_prompts(find_prompts(DEFAULT_PROMPTS))
    assert len(prompts) == 6 and all(parse(prompt) for prompt in prompts)


@pytest.mark.parametrize("prompt", read_prompts(find_prompts(LIBRARY)))
def test_every_prompt_of_the_library_can_be_looked_up(prompt: str) -> None:
    """By its own words; underscores are spaces, capitals make no difference."""
    assert look_up(f"lib:{prompt.upper().replace(' ', '_')}") == prompt


def test_looking_up(tmp_path: Path) -> None:
    """Whole words go before parts of words; anything else is as it is."""
    file = tmp_path / "mine.txt"
    file.write_text("a red car\na red carpet\na blue house\n")
    assert look_up("lib:car", str(file)) == "a red car"
    assert look_up("lib:blu", str(file)) == "a blue house"
    assert look_up("a fox", "nowhere.txt") == "a fox"
    with pytest.raises(UserError, match=r"2 prompts of .*'a red car'; 'a red carpet'.*give more words"):
        look_up("lib:red", str(file))
    with pytest.raises(UserError, match="no prompt of"):
        look_up("lib:dragon", str(file))


def test_generate_keeps_the_prompt_that_was_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run does not change when the library does."""
    words = ["generate", "shapes", "lib:yellow_cube", "prompt_library=prompts/shapes.txt", *QUICK, "training.steps=1"]
    assert carv3d(*words, "mesh.formats=[]", "--output", str(tmp_path / "run"))[0] == 0
    assert 'prompt: "a yellow cube"' in (tmp_path / "run" / "config.yaml").read_text()
    code, _, err = carv3d("generate", "shapes", "lib:dragon", *QUICK, capsys=capsys)
    assert code == 2 and "lib:dragon: no prompt of prompts/library.txt has these words" in " ".join(err.split())


@pytest.mark.parametrize("text", ['{"dreamfusion": ["a fox"]}', '[\n"a fox"\n]', "\n {\n"])
def test_a_library_in_json_is_not_read_as_lines(tmp_path: Path, text: str) -> None:
    """Quotes and commas would be parts of the prompts."""
    (tmp_path / "library.json").write_text(text)
    with pytest.raises(UserError, match="is JSON: give a text file"):
        read_prompts(tmp_path / "library.json")
