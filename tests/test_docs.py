"""The documentation: pages that are found, links that lead somewhere, commands that exist."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
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


def _row(module: str, rows: dict[str, int]) -> int | None:
    """The row of CONTRIBUTING's map that a module belongs to; None for a name that is no module."""
    parts = module.split(".")[1:]
    if len(parts) > 1 and parts[0] != "config" and parts[1] == "config":
        return rows["*/config.py"]
    return next((rows[name] for name in (f"{parts[0]}/", f"{parts[0]}.py") if name in rows), None) if parts else None


def _imports(source: Path) -> Iterator[tuple[str, bool]]:
    """The modules of carv3d that a file imports, and whether within a function; without those for type checking."""
    tree = ast.parse(source.read_text(encoding="utf-8"))
    typing = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    left_out = {id(inner) for node in typing for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) not in left_out and isinstance(node, ast.ImportFrom) and (node.module or "").startswith("carv3d"):
            yield from ((f"{node.module}.{name.name}", node.col_offset > 0) for name in node.names)


def test_the_map_of_contributing_is_true() -> None:
    """Every part of carv3d is in the map, and imports only from its own row and from those above."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Map")[2].partition("\n## ")[0]
    table = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    rows = {name: row for row, cell in enumerate(table) for name in re.findall(r"`([^`]+)`", cell)}
    for source in sorted((ROOT / "carv3d").rglob("*.py")):
        file = source.relative_to(ROOT / "carv3d").as_posix()
        if file in ("__init__.py", "__main__.py", "system/doctor.py", "kernels/trials.py"):
            continue
        own = _row("carv3d." + file.removesuffix(".py").replace("/", "."), rows)
        assert own is not None, f"{file} is not in the map of CONTRIBUTING.md"
        for module, within_a_function in _imports(source):
            row = _row(module, rows)
            lazy = within_a_function and own == rows["*/config.py"]
            assert row is None or row <= own or lazy, f"{file} imports {module}, which is below it in CONTRIBUTING.md"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120
