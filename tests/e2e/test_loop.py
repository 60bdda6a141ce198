"""The loop closes on a small slice of real flights: the demo's promises, checked from its summary."""

from __future__ import annotations

import math

import pytest
from demo_run import CleanRun, leftovers

pytestmark = pytest.mark.e2e


def test_every_record_is_accounted_for(clean_run: CleanRun) -> None:
    records = clean_run.summary["records"]
    assert records["sent"] == records["accepted"] + records["rejected"]
    assert records["rejected"] == sum(records["rejected_by_reason"].values()) > 0


def test_no_prediction_fails_over_any_door(clean_run: CleanRun) -> None:
    predictions = clean_run.summary["predictions"]
    assert predictions["failed"] == 0
    assert all(door["sent"] > 0 for door in predictions["by_door"].values())
    assert sum(door["sent"] for door in predictions["by_door"].values()) == predictions["sent"]


def test_drift_brings_the_second_version(clean_run: CleanRun) -> None:
    versions = {line["version"]: line for line in clean_run.summary["versions"]}
    assert versions[1]["cause"] == "first_data"
    assert versions[2]["cause"] == "drift"
    assert any(chunk.get("alert") for chunk in clean_run.summary["drift"])
    assert 0 < clean_run.summary["training_seconds"] < clean_run.summary["recovery_seconds"]


def test_both_versions_are_judged_on_the_same_later_flights(clean_run: CleanRun) -> None:
    metrics = [line["metrics"] for line in clean_run.summary["versions"]]
    assert len({line["rows"] for line in metrics}) == 1
    assert all(math.isfinite(line["roc_auc"]) and line["roc_auc"] > 0.5 for line in metrics)


def test_a_prediction_is_followed_to_its_git_tag(clean_run: CleanRun) -> None:
    lineage = clean_run.summary["lineage"]
    assert clean_run.summary["causation_gaps"] == []
    assert lineage["git_tag"].startswith("flight-delays/v")


def test_the_report_stands_alone(clean_run: CleanRun) -> None:
    html = (clean_run.root / "demo" / "report.html").read_text()
    assert "<svg" in html or "data:image/png" in html
    assert 'src="http' not in html and 'href="http://' not in html.replace("http://127.", "")


def test_a_stack_that_was_kept_and_stopped_leaves_no_process(clean_run: CleanRun) -> None:
    assert leftovers(clean_run.root) == []
