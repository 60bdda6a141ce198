"""Everything in README.md runs as written, against the stack of the demo's run."""

from __future__ import annotations

import json
import re

import pytest
from demo_run import Run
from readme_run import Shown, shown

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("item", shown(), ids=lambda item: item.name)
def test_what_the_readme_shows_runs_as_written(run: Run, item: Shown) -> None:
    outcome = run.readme[item]
    print(outcome.note)
    assert outcome.code == 0, outcome.output


def test_every_door_of_the_readme_is_among_them() -> None:
    texts = [item.text for item in shown()]
    doors = ("from kafka", "curl ", "grpcurl ", "everloop push", "everloop predict")
    assert [door for door in doors if not any(door in text for text in texts)] == []


@pytest.mark.parametrize("tool", ["curl ", "grpcurl "])
def test_predictions_come_with_their_version(run: Run, tool: str) -> None:
    (output,) = [
        outcome.output for item, outcome in run.readme.items() if item.text.startswith(tool)
    ]
    answer = json.loads(output)
    assert answer["model"] == "flight-delays"
    assert int(answer["version"]) >= 2
    assert 0 <= answer["predictions"][0]["score"] <= 1


def test_what_a_producer_and_a_file_brought_is_accepted(run: Run) -> None:
    (pushed,) = [
        outcome.output
        for item, outcome in run.readme.items()
        if item.text.startswith("everloop push")
    ]
    assert "2 accepted, 0 rejected" in pushed
    (replay,) = [
        outcome.output
        for item, outcome in run.readme.items()
        if item.text.startswith("everloop dead-letters replay")
    ]
    found = re.search(r"(\d+) replayed", replay)
    assert found, replay
    received = run.summary["records"]["sent"] + 3 + int(found[1])
    status = next(o for i, o in run.readme.items() if "status" in i.text)
    assert re.search(r"flight-delays +v\d+", status.output)
    assert run.received == received
