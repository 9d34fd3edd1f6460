"""The documentation: pages that are found, links that lead somewhere, commands that exist."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import typer
import yaml

from carv3d.cli import app, load_verbs

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "outputs" / "README.md", *DOCS.rglob("*.md")])
load_verbs()
VERBS = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


class _Loader(yaml.SafeLoader):
    """Reads mkdocs.yml without the tags of its extensions."""


def _files(nav: object) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return [file for item in (nav.values() if isinstance(nav, dict) else nav) for file in _files(item)]  # type: ignore[attr-defined]


def test_every_page_is_in_the_navigation() -> None:
    nav = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader=_Loader)["nav"]
    assert sorted(_files(nav)) == sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files(page: Path) -> None:
    """Also those that leave docs/, which the site's build does not check."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:|#", target):
            path, _, anchor = target.partition("#")
            found = page.parent / path
            assert found.exists(), f"{target} in {page}"
            if anchor:
                heads = re.findall(r"^#+ (.*)$", found.read_text(encoding="utf-8"), re.MULTILINE)
                assert anchor in [re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads], target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_exist(page: Path) -> None:
    """Every `carv3d VERB` and every script that a page names."""
    text = page.read_text(encoding="utf-8")
    fenced = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL))
    for verb in [*re.findall(r"^carv3d (\w+)", fenced, re.MULTILINE), *re.findall(r"`carv3d (\w+)", text)]:
        assert verb in VERBS or verb == "VERB", f"carv3d {verb} in {page}"
    for name in re.findall(r"\bscripts/([\w/.]+\.py)\b", text):
        assert (ROOT / "scripts" / name).exists(), name


def test_no_file_is_an_unknown_path_in_messages() -> None:
    """Messages and docstrings name pages that exist."""
    files = subprocess.run(["git", "ls-files", "carv3d/**/*.py"], cwd=ROOT, capture_output=True, text=True)
    sources = [ROOT / file for file in files.stdout.split()] or sorted((ROOT / "carv3d").rglob("*.py"))
    for source in sources:
        for name in re.findall(r"\bdocs/[\w/-]+\.md", source.read_text(encoding="utf-8")):
            assert (ROOT / name).exists(), f"{name} in {source}"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120
