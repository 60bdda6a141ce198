"""The inference benchmark goes on where it was interrupted."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench.inference.measure import Case, Sample
from bench.inference.outcome import Round, plot
from bench.inference.progress import OtherRun, Progress

PLAN = {"commit": "1a2b3c", "seconds": 2, "doors": ["http"], "callers": [1, 32]}
MEASURED = Round(
    {
        Case("http", size, callers): Sample(1000.0, 1.5, 2.5, 90.0, 3.0, 0)
        for size in ("single", "batch64")
        for callers in (1, 32)
    },
    memory=2**20,
)


def test_what_was_measured_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "rounds.json"
    Progress({"bare": [MEASURED, MEASURED]}, {"ray": "no wheel"}, 0.5).save(path, PLAN)
    assert Progress.saved(path, PLAN) == Progress(
        {"bare": [MEASURED, MEASURED]}, {"ray": "no wheel"}, 0.5
    )


def test_nothing_is_measured_where_nothing_was_written(tmp_path: Path) -> None:
    assert Progress.saved(tmp_path / "rounds.json", PLAN) == Progress()


def test_rounds_of_another_commit_are_not_mixed_with_those_of_this_one(tmp_path: Path) -> None:
    path = tmp_path / "rounds.json"
    Progress({"bare": [MEASURED]}).save(path, PLAN)
    with pytest.raises(OtherRun, match="1a2b3c"):
        Progress.saved(path, {**PLAN, "commit": "4d5e6f"})


def test_a_run_without_eight_callers_is_drawn() -> None:
    axes = plot({"bare": [MEASURED]}).axes
    assert "1 callers" in axes[-1].get_title()
