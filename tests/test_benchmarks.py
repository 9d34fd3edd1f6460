"""The benchmark harness: the page's tables are its results, and suites run in their smallest size."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from carv3d.errors import UserError
from scripts.benchmarks import shapes
from scripts.benchmarks.__main__ import app, main
from scripts.benchmarks.backends import compare, volume
from scripts.benchmarks.harness import PAGES, Bench, Table, every_table, marked, read, run, suites, with_tables, write
from tests import nerfacc_kernels
from tests.test_cli import carv3d


def measured(folder: Path, suite: str, *words: str, tables: str = "") -> dict[str, Table]:
    """The tables of a suite, in its smallest size on the CPU."""
    options = ["--quick", "--device", "cpu", "--out", str(folder), *(["--tables", tables] if tables else [])]
    found = CliRunner().invoke(app, [suite, *words, *options], catch_exceptions=False)
    assert found.exit_code == 0
    return read(folder / "results" / f"{suite}.json")


def test_the_pages_have_the_tables_of_the_results() -> None:
    """`python -m scripts.benchmarks docs` changes nothing: no figure of the pages is written by hand."""
    pages, tables = [page.read_text(encoding="utf-8") for page in PAGES], every_table()
    assert [with_tables(page, tables) for page in pages] == pages
    shown = [name for page in pages for name in marked(page)]
    assert sorted(shown) == sorted(tables), "a table is kept that no page shows, or shown twice"
    page = pages[0]  # others may have tables without figures
    outside = re.sub(r"<!-- table: .*?<!-- end table -->", "", page, flags=re.DOTALL)
    assert not re.findall(r"^\|.*", outside, re.MULTILINE), "a table outside the marks"


def test_a_figure_changed_by_hand_is_seen() -> None:
    page, tables = PAGES[0].read_text(encoding="utf-8"), every_table()
    changed = page.replace("a red mushroom | 1 |", "a red mushroom | 2 |")
    assert changed != page == with_tables(changed, tables)
    with pytest.raises(UserError, match="no file in docs/results has"):
        with_tables("<!-- table: nowhere/x -->\n<!-- end table -->", tables)


def test_every_result_says_how_it_was_made() -> None:
    """Command, machine and versions; what was copied from earlier pages says so."""
    for name, table in every_table().items():
        assert table.made_by["command"] and table.made_by["machine"], name
        assert table.made_by.get("transcribed") or table.made_by["versions"]["torch"], name
        assert {len(row) for row in table.rows} == {len(table.columns)}, name


def test_a_suite_end_to_end(tmp_path: Path) -> None:
    """Through the command line: each K is timed, and the JSON has machine, versions and command."""
    table = measured(tmp_path, "steps", "cameras.height=16", "cameras.width=16", tables="steps")["steps"]
    assert [row[0] for row in table.rows] == [1, 2] and table.rows[0][-1] == "1.00"
    assert table.made_by["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert "scripts.benchmarks" in table.made_by["command"] and table.made_by["machine"] and table.made_by["quick"]
    raw = json.loads((tmp_path / "results" / "steps.json").read_text())
    assert raw["suite"] == "steps"


def test_tables_of_one_suite_are_kept_side_by_side(tmp_path: Path) -> None:
    """A second measurement replaces its own table alone."""
    write(tmp_path / "a.json", {"x": Table(["n"], [[1]]), "y": Table(["n"], [[2]])})
    write(tmp_path / "a.json", {"y": Table(["n"], [[3]])})
    assert {name: table.rows for name, table in read(tmp_path / "a.json").items()} == {"x": [[1]], "y": [[3]]}


def bench(suite: str, tables: list[str]) -> Bench:
    return Bench(suite, [], torch.device("cpu"), Path("nowhere"), 1.0, 0, True, tables)


def test_unknown_names_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no suite 'varianze': choose one of attribution, .*variance, or docs"):
        run(bench("varianze", []), tmp_path)
    with pytest.raises(UserError, match="no table 'x'"):
        run(bench("backends", ["x"]), tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("varianze", "no suite 'varianze'"),
        ("steps --nosuch 1", "No such option: --nosuch"),
        ("steps --device abacus", "'abacus' is not a device"),
        ("steps sd9 --device cpu", "sd9 has no known size"),
        ("steps --quick --save", "--quick is for a try"),
    ],
)
def test_mistakes_in_a_command_line(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2 and one line, before anything is measured."""
    assert main(line.split()) == 2
    output = capsys.readouterr()
    (said,) = (one for one in output.err.splitlines() if not one.startswith("["))  # [transformers] warns when imported
    assert said.startswith("error: ") and message in said and not output.out


def test_a_run_is_only_taken_up_if_it_is_the_same() -> None:
    """A try with --quick, other words, another seed or device must not give a later measurement's figures."""
    own = bench("shapes", [])
    other = [replace(own, quick=False), replace(own, seed=1), replace(own, device=torch.device("cuda"))]
    folders = [own.folder("a", ["x=1"]), own.folder("a", ["x=2"]), *(each.folder("a", ["x=1"]) for each in other)]
    assert len(set(folders)) == 5 and own.folder("a", ["x=1"]) == folders[0]


def in_process(*words: str) -> str:
    """What the command line prints, without the seconds of a new process."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code, _, _ = carv3d(*words)
    assert code == 0
    return out.getvalue()


@pytest.mark.slow
def test_an_object_of_the_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One prompt, generated and evaluated, at the seed of the command line and on its device."""
    monkeypatch.setattr(shapes, "carv3d", in_process)
    table = measured(tmp_path, "shapes", "training.steps=1", "--seed", "3")
    assert {name: len(each.rows) for name, each in table.items()} == {"shapes-means": 1, "shapes": 1}
    (config,) = tmp_path.glob("runs/*/*/config.yaml")
    assert "seed: 3\n" in config.read_text() and "device: cpu\n" in config.read_text()


@pytest.mark.parametrize("suite", suites())
def test_every_suite_can_be_imported(suite: str) -> None:
    """And measures something."""
    assert callable(importlib.import_module(f"scripts.benchmarks.{suite}").measure)


@pytest.mark.slow
def test_steps_at_real_sizes(tmp_path: Path) -> None:
    """With networks a tenth as wide: every setting is timed, and reuse is compared with the naive loop."""
    small = ["scene.type=voxel_grid", "scene.resolution=16", "renderer.samples=8", "cameras.height=16"]
    table = measured(tmp_path, "steps", "sd15", *small, "cameras.width=16", tables="sd15")["sd15"]
    assert [row[0] for row in table.rows] == ["(1, 1)", "(1, 2)", "naive, K = 2"]
    assert all(float(row[2]) >= float(row[5]) > 0 for row in table.rows)


def test_comparison_of_backends_sees_what_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the same is the same; nerfacc, on the stand-ins of its kernels, agrees; a scaled gradient is a bias."""
    nerfacc_kernels.use(monkeypatch)
    cpu = torch.device("cpu")
    mine = volume("torch", cpu)
    same = compare("torch", (mine, volume("torch", cpu)), 8, 1, cpu)
    assert (same.difference, same.bias) == (0, 0) and same.cosine == pytest.approx(1)
    packed = volume("torch", cpu)
    packed[1].backend = "nerfacc"  # type: ignore[assignment]
    row = compare("nerfacc", (mine, packed), 8, 1, cpu)
    assert row.difference < 1e-5 and row.cosine > 0.999999 and abs(row.bias) < 1e-5
    larger = volume("torch", cpu)
    for parameter in larger[0].parameters():
        parameter.register_hook(lambda gradient: 1.25 * gradient)
    row = compare("larger", (mine, larger), 8, 1, cpu)
    assert row.bias == pytest.approx(0.25) and row.cosine == pytest.approx(1) and row.difference == 0
