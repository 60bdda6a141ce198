"""A benchmark leaves its figures as JSON, a plot, and its section in the docs, and measures with one thread."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from bench import flights_model, report, scoring
from bench.report import Result
from matplotlib.figure import Figure


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A folder that takes what benchmarks leave."""
    monkeypatch.setattr(report, "OUT", tmp_path / "out")
    monkeypatch.setattr(report, "DOCS", tmp_path / "docs" / "benchmarks.md")
    return tmp_path


def result(value=2.0, name="speed"):
    rows = [{"case": "a\\b", "µs": 1234.5}, {"case": "c", "µs": 0.25}]
    return Result(name, "How fast", rows, {"a.vs_peer": value}, "Note.", load=0.25)


def test_figures_ratios_machine_commit_and_plot_are_left(home):
    report.write(result(), Figure())
    left = json.loads((home / "out" / "speed.json").read_text())
    assert left["figures"] == [{"case": "a\\b", "µs": 1234.5}, {"case": "c", "µs": 0.25}]
    assert (left["ratios"], left["load"], left["command"]) == (
        {"a.vs_peer": 2.0},
        0.25,
        "make bench-speed",
    )
    assert set(left["machine"]) == {"cpu", "cores", "memory_gib", "python", "system"}
    assert re.fullmatch(r"[0-9a-f]{9,}\+?|unknown", left["commit"])
    assert (home / "out" / left["plot"]).read_text().startswith("<?xml")


def test_the_docs_show_the_latest_with_its_command_and_keep_the_rest(home):
    docs = home / "docs" / "benchmarks.md"
    docs.parent.mkdir()
    docs.write_text("# Benchmarks\n\nWritten by hand.\n")
    report.write(result(), Figure())
    report.write(result(name="size"), Figure())
    report.write(result(3.0), Figure())
    text = docs.read_text()
    assert text.startswith(
        "# Benchmarks\n\nWritten by hand.\n\n<!-- bench:speed -->\n## How fast\n"
    )
    assert "`make bench-speed`, " in text
    assert "load before the run 0.25." in text
    assert "| a\\b | 1,234.5 |" in text
    assert [text.count(f"| `a.vs_peer` | {value} |") for value in ("2.00", "3.00")] == [1, 1]
    assert text.count("<!-- bench:speed -->") == 1
    (link,) = set(re.findall(r"\((images/bench-speed\.svg)\)", text))
    assert (docs.parent / link).exists()


def test_a_partial_run_leaves_the_docs_alone(home):
    report.write(result(), Figure(), publish=False)
    assert (home / "out" / "speed.json").exists()
    assert not (home / "docs").exists()


def test_tables_take_the_place_of_figures_and_ratios(home):
    tables = {"By hand": [{"what": "x", "how much": 1.5}]}
    report.write(replace(result(), tables=tables, more={"seconds": 4}), Figure())
    text = (home / "docs" / "benchmarks.md").read_text()
    assert "By hand\n\n| what | how much |\n|---|---|\n| x | 1.5 |" in text
    assert "a.vs_peer" not in text
    assert json.loads((home / "out" / "speed.json").read_text())["seconds"] == 4


def test_a_tree_without_git_has_no_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert report.commit() == "unknown"


def test_a_busy_machine_is_said(monkeypatch, capsys):
    monkeypatch.setattr(report.os, "getloadavg", lambda: (2.5, 0, 0))
    assert report.load_before() == 2.5
    assert "not quiet (load 2.5)" in capsys.readouterr().err


def test_every_benchmark_is_documented():
    root = Path(report.__file__).resolve().parent
    runnable = [path for path in root.glob("*.py") if "__main__" in path.read_text()]
    names = {path.stem for path in runnable} | {
        path.parent.name for path in root.glob("*/__main__.py")
    }
    names = {name.replace("_", "-") for name in names}
    text = (root.parent / "docs" / "benchmarks.md").read_text()
    assert {name for name in names if f"`make bench-{name}`" in text} == names


@pytest.mark.slow
def test_scoring_measures_both_sides_of_every_case(home, monkeypatch):
    monkeypatch.setattr(scoring, "FAMILIES", ("hist_gradient_boosting",))
    monkeypatch.setattr(flights_model, "TAUGHT_ROWS", 500)
    monkeypatch.setattr(scoring, "SECONDS", 1e-4)
    monkeypatch.setattr(scoring, "REPEATS", 2)
    scoring.main()
    left = json.loads((home / "out" / "scoring.json").read_text())
    assert [(row["family"], row["rows"]) for row in left["figures"]] == [
        ("hist_gradient_boosting", 1),
        ("hist_gradient_boosting", 64),
    ]
    assert all(value > 0 for value in left["ratios"].values())
