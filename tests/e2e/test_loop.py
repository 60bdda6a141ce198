"""The loop closes on a small slice of real flights, though each service is killed once in the middle of its work."""

from __future__ import annotations

import math
from collections import Counter
from itertools import cycle, islice

import numpy as np
import pytest
from demo_run import Run, leftovers
from kills import KILLS

from everloop.demo import flights
from everloop.demo.producer import BREAK_EVERY
from everloop.demo.slices import SLICES
from everloop.demo.steps import FIRST_MONTHS

pytestmark = pytest.mark.e2e

REASONS = (
    "MALFORMED_JSON",
    "MISSING_FIELD",
    "WRONG_TYPE",
    "UNKNOWN_FIELD",
    "OUT_OF_RANGE",
    "WRONG_TYPE",
)
"""Why ingest refuses what the demo's producer breaks, in the order in which it breaks it."""


def test_killing_every_service_in_turn_changes_no_count(run: Run) -> None:
    assert run.killed == [part for part, _ in KILLS]
    small = flights.load(SLICES["small"].days_per_month)
    first = int(np.searchsorted(small.month, FIRST_MONTHS, side="right"))
    labels = int(np.isfinite(small.late[first:]).sum())
    broken = Counter(islice(cycle(REASONS), first // BREAK_EVERY))
    records = run.summary["records"]
    assert records["sent"] == len(small) + labels + broken.total()
    assert records["accepted"] == len(small) + labels
    assert records["rejected"] == broken.total() > 0
    assert records["rejected_by_reason"] == broken
    assert records["labels"] == labels
    assert run.summary["predictions"]["sent"] == len(small) - first


def test_no_prediction_fails_over_any_door(run: Run) -> None:
    predictions = run.summary["predictions"]
    assert predictions["failed"] == 0
    assert all(door["sent"] > 0 for door in predictions["by_door"].values())
    assert sum(door["sent"] for door in predictions["by_door"].values()) == predictions["sent"]


def test_one_trace_leads_from_a_dataset_version_to_the_promoted_model(run: Run) -> None:
    """What a service had not sent yet when it was killed is lost: of the versions, one is enough."""
    traces: dict[bytes, set[tuple[str, str]]] = {}
    for service, span in run.spans:
        traces.setdefault(span.trace_id, set()).add((service, span.name.split("/")[0]))
    steps = {
        ("everloop-ingest", "cut flight-delays"),
        ("everloop-trainer", "training flight-delays"),
        ("everloop-registry-gateway", "handle everloop.training.v1.ModelTrained"),
        ("everloop-monitor", "handle everloop.registry.v1.ModelPromoted"),
    }
    assert max((len(steps & seen) for seen in traces.values()), default=0) == len(steps)


def test_drift_brings_the_second_version(run: Run) -> None:
    versions = {line["version"]: line for line in run.summary["versions"]}
    assert versions[1]["cause"] == "first_data"
    assert versions[2]["cause"] == "drift"
    assert any(chunk.get("alert") for chunk in run.summary["drift"])
    assert 0 < run.summary["training_seconds"] < run.summary["recovery_seconds"]


def test_both_versions_are_judged_on_the_same_later_flights(run: Run) -> None:
    metrics = [line["metrics"] for line in run.summary["versions"] if line["version"] in (1, 2)]
    assert len({line["rows"] for line in metrics}) == 1
    assert all(math.isfinite(line["roc_auc"]) and line["roc_auc"] > 0.5 for line in metrics)


def test_a_prediction_is_followed_to_its_git_tag(run: Run) -> None:
    lineage = run.summary["lineage"]
    assert run.summary["causation_gaps"] == []
    assert lineage["git_tag"].startswith("flight-delays/v")


def test_the_report_stands_alone(run: Run) -> None:
    html = (run.root / "demo" / "report.html").read_text()
    assert "<svg" in html or "data:image/png" in html
    assert 'src="http' not in html and 'href="http://' not in html.replace("http://127.", "")


def test_a_stack_that_was_kept_and_stopped_leaves_no_process(run: Run) -> None:
    assert leftovers(run.root) == []
