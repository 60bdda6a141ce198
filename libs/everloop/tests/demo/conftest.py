"""What the demo's tests share."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from everloop.addresses import repository_root
from everloop.demo import flights, tensors
from everloop.demo.flights import Flights
from everloop.demo.tensors import Columns
from everloop_contracts.pipeline import Pipeline, load_pipeline


@pytest.fixture(scope="session")
def pipeline() -> Pipeline:
    return load_pipeline(repository_root() / "pipelines" / "flight-delays.yaml")


@pytest.fixture(scope="session")
def two_days() -> Flights:
    """The first two days of each month."""
    return flights.load(days_per_month=2)


@pytest.fixture(scope="session")
def columns(two_days: Flights, pipeline: Pipeline) -> Columns:
    return tensors.columns_of(two_days, pipeline)


STARTED = datetime(2026, 11, 23, 12, tzinfo=UTC)


def at(seconds: float) -> str:
    return (STARTED + timedelta(seconds=seconds)).isoformat()


def metrics(auc: float | None) -> dict[str, Any]:
    return {"rows": 1000, "roc_auc": auc, "log_loss": 0.5, "brier": 0.18}


def measured(value: float, *, alert: bool = False) -> dict[str, Any]:
    return {"measure": "roc_auc", "value": value, "lower": 0.68, "upper": None, "alert": alert}


def chunk(version: int, index: int, auc: float | None) -> dict[str, Any]:
    alert = auc is not None and auc < 0.68
    return {
        "id": f"flight-delays/{version}/{index}",
        "model_version": version,
        "index": index,
        "first_event_time": f"2013-0{3 + index}-01T05:00:00Z",
        "features": [{"feature": "temperature", "measurement": measured(0.2)}],
        "multivariate": measured(1.0),
        "estimated_performance": measured(0.7),
        "realised_performance": None if auc is None else measured(auc, alert=alert),
        "alert": alert,
    }


def event(seconds: float, name: str, id_: str, cause: str) -> dict[str, Any]:
    return {
        "time": at(seconds),
        "event": name,
        "id": id_,
        "cause": cause,
        "source": "everloop.test",
        "text": "a < b & c",
    }


def version(number: int, cause: str, auc: float) -> dict[str, Any]:
    return {
        "version": number,
        "cause": cause,
        "stage": "production",
        "family": "mlp",
        "metrics": metrics(auc),
        "holdout_metrics": {"roc_auc": auc},
        "dataset_tag": f"flight-delays/v{number}",
        "gates": [{"gate": "metric_floor", "passed": True, "message": "0.7 >= 0.6"}],
    }


def door(sent: int) -> dict[str, Any]:
    return {"requests": 1, "sent": sent, "failed": 0, "p50_ms": 4.0, "p99_ms": 9.0, "max_ms": 9.0}


@pytest.fixture
def summary() -> dict[str, Any]:
    """A summary as a good run leaves it."""
    months = [
        {
            "month": month,
            "unseen": month > 6,
            "stale": metrics(0.65),
            "retrained": metrics(0.69) if month > 6 else None,
        }
        for month in range(3, 13)
    ]
    return {
        "started": STARTED.isoformat(),
        "duration_seconds": 300.0,
        "flights": 336_776,
        "records": {
            "sent": 110,
            "accepted": 108,
            "rejected": 2,
            "rejected_by_reason": {"WRONG_TYPE": 2},
            "broken_on_purpose": {"wrong_type": 2},
            "labels": 50,
        },
        "predictions": {
            "sent": 400,
            "failed": 0,
            "errors": [],
            "by_door": {name: door(100) for name in ("grpc", "http", "oip_grpc", "oip_http")},
        },
        "versions": [version(1, "first_data", 0.65), version(2, "drift", 0.69)],
        "stale_vs_retrained": {
            "stale_version": 1,
            "retrained_version": 2,
            "from_position": 100,
            "stale": metrics(0.65),
            "retrained": metrics(0.69),
            "months": months,
        },
        "served_by_month": [{"month": month, **metrics(0.67)} for month in range(3, 13)],
        "drift": [chunk(1, 0, 0.7), chunk(1, 1, 0.66), chunk(2, 0, None), chunk(2, 1, 0.7)],
        "decisions": [
            {"time": at(150), "model_version": 1, "action": "retrain", "reason": "2 of 3 < 0.68"}
        ],
        "recovery_seconds": 88.0,
        "training_seconds": 71.0,
        "lineage": {
            "prediction_id": "00000000000000ff-1a",
            "record_id": "UA-1",
            "label": "true",
            "score": 0.6,
            "actual": None,
            "model_version": 2,
            "family": "mlp",
            "cause": "drift",
            "mlflow_run_id": "run-1",
            "training_id": "training-1",
            "dataset_version": 2,
            "dataset_rows": 1000,
            "git_tag": "flight-delays/v2",
            "git_commit": "c" * 40,
            "files": [{"path": "rows.parquet", "uri": "s3://b/k", "md5": "d41d8"}],
            "causes": [
                event(220, "ModelPromoted", "e2", "e1"),
                event(151, "RetrainRequested", "e1", "e0"),
            ],
        },
        "causation_gaps": [],
        "memory": {
            "peak_bytes": 5 * 2**30,
            "at_peak": {},
            "samples": [(0.0, 2**30), (300.0, 2**31)],
        },
        "trainings": [{"start": at(35), "seconds": 55}],
        "serving": [(95.0, 235.0, 1), (235.0, 300.0, 2)],
        "timeline": [
            event(32, "DatasetVersionCreated", "e3", "demo"),
            event(130, "DriftDetected", "e0", "p"),
            event(151, "RetrainRequested", "e1", "e0"),
            event(231, "ModelTrained", "e4", "e1"),
            event(232, "ModelRegistered", "e5", "e4"),
            event(233, "ModelPromoted", "e2", "e4"),
        ],
    }
