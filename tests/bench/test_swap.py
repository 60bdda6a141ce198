"""The report on swaps fails where it should."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench import swap
from bench.report import Result
from bench.serving.callers import Answer
from bench.serving.load import Requests
from bench.serving.logged import Logged, Row
from bench.serving.models import Version
from bench.serving.processors import Span
from bench.serving.replicas import Books


def seen(rows: dict[str, Row]) -> swap.Seen:
    """One change, two requests by the load (one of each door) and one by a caller who reads, from second 100 on."""
    requests = {
        door: Requests(np.array([100.0]), np.array([0.001]), 0) for door in ("http", "grpc")
    }
    return swap.Seen(
        versions=[Version(1, "sha", 0.5)],
        first=1,
        changes=[],
        requests=requests,
        answers=[Answer("http", 0, 100.0, 0.001, 1, "r-3", 0.5)],
        log=Logged(rows),
        books=Books(),
        memory=(0, 0),
        artifacts=1,
        load_cpu=(0.0, 0.0),
        processors=[],
    )


def test_rows_from_before_the_load_do_not_stand_in_for_those_that_are_missing() -> None:
    during = {f"r-{number}": Row(1, 100.0, 100.001) for number in (1, 2, 3)}
    name = "requests were answered without a row in the log"
    assert swap._wrong(seen(during))[name] == 0
    before = {"r-0": Row(1, 99.0, 99.001)}
    del during["r-2"]
    assert swap._wrong(seen(before | during))[name] == 1


def test_cores_are_told_apart_by_whether_a_version_changed_meanwhile() -> None:
    change = swap.Change(2, "promotion", called=100.0, answered=100.4, served=100.5)
    spans = [
        Span(99.0, 100.0 - 1e-9, {"replica": 0.5, "mlflow": 0.0}),
        Span(100.0, 101.0, {"replica": 0.4, "mlflow": 0.8}),
        Span(101.1, 102.1, {"replica": 0.7, "mlflow": 0.0}),
    ]
    cores = swap._cores(replace(seen({}), changes=[change], processors=spans))
    assert cores == [
        {"part": "all", "steady": 0.6, "swapping": 1.2},
        {"part": "replica", "steady": 0.6, "swapping": 0.4},
        {"part": "mlflow", "steady": 0.0, "swapping": 0.8},
    ]


@pytest.mark.parametrize(
    ("ratio", "options", "status"), [(1.5, [], 0), (1.6, [], 1), (1.6, ["--quick"], 0)]
)
def test_a_whole_run_fails_on_its_goal(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    ratio: float,
    options: list[str],
    status: int,
) -> None:
    def judged(*_: Any) -> Result:
        return Result("swap", "", [], {"http.p99.swapping_vs_steady": ratio}, "", 0.0)

    nothing = {"missing_tools": [], "load_before": 0.0, "_wrong": {}}
    for name in ("missing_tools", "stop_in_order", "load_before", "run", "plot", "write", "_wrong"):
        answer = nothing.get(name)
        monkeypatch.setattr(swap, name, lambda *_, answer=answer, **__: answer)
    monkeypatch.setattr(swap, "judge", judged)
    monkeypatch.setattr(swap, "OUT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["swap", *options])
    assert swap.main() == status
    assert ("http.p99.swapping_vs_steady is 1.6" in capsys.readouterr().err) == (ratio > 1.5)
