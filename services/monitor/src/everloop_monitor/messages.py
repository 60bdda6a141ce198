"""From the monitor's types to Protobuf."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from google.protobuf.timestamp_pb2 import Timestamp

from everloop_contracts.stubs.everloop.monitoring.v1 import events_pb2, monitoring_pb2
from everloop_monitor import domain

__all__ = ["alert", "chunk", "decision", "early_warning", "prediction", "retrain_requested"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _timestamp(moment: datetime | None) -> Timestamp | None:
    if moment is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(moment.astimezone(UTC))
    return stamp


def _measurement(value: domain.Measurement | None) -> monitoring_pb2.Measurement | None:
    if value is None:
        return None
    return monitoring_pb2.Measurement(
        measure=value.measure,
        value=value.value,
        lower=value.lower,
        upper=value.upper,
        alert=value.alert,
    )


def chunk(value: domain.Chunk) -> monitoring_pb2.Chunk:
    """A chunk that was evaluated or given up."""
    report = value.report
    return monitoring_pb2.Chunk(
        id=value.id,
        pipeline=value.pipeline,
        model_version=value.version,
        index=value.index,
        rows=value.rows,
        first_event_time=_timestamp(value.first_event),
        last_event_time=_timestamp(value.last_event),
        features=[
            monitoring_pb2.FeatureDrift(
                feature=drift.feature, measurement=_measurement(drift.measurement)
            )
            for drift in (report.features if report else ())
        ],
        multivariate=_measurement(report.multivariate if report else None),
        estimated_performance=_measurement(report.estimated if report else None),
        realised_performance=_measurement(report.realised if report else None),
        labelled_rows=value.labelled_rows,
        alert=value.alert,
        evaluate_time=_timestamp(value.evaluated_at),
        failure=value.failure,
        findings=[
            monitoring_pb2.Finding(
                condition=finding.condition,
                feature=finding.feature,
                segment=finding.segment,
                measurement=_measurement(finding.measurement),
            )
            for finding in (report.findings if report else ())
        ],
        alerts=value.alerts,
    )


def decision(value: domain.RecordedDecision) -> monitoring_pb2.Decision:
    """A recorded decision."""
    return monitoring_pb2.Decision(
        id=value.id,
        pipeline=value.pipeline,
        model_version=value.version,
        chunk_id=value.chunk_id,
        action=value.action,
        reason=value.reason,
        time=_timestamp(value.made_at),
        condition=value.condition,
        severity=value.severity,
        request_id=value.request_id,
        evidence=[
            monitoring_pb2.Evidence(
                chunk_id=one.chunk_id,
                condition=one.condition,
                shown=one.shown,
                alert=one.alert,
                severity=one.severity,
            )
            for one in value.evidence
        ],
    )


def alert(value: domain.Chunk) -> monitoring_pb2.Alert:
    """A chunk that alerts."""
    return monitoring_pb2.Alert(
        chunk_id=value.id,
        pipeline=value.pipeline,
        model_version=value.version,
        conditions=value.alerts,
        shown=[value.evidence(condition) for condition in value.alerts],
        time=_timestamp(value.evaluated_at),
    )


def early_warning(value: domain.EarlyWarning) -> monitoring_pb2.EarlyWarning:
    """A warning of a chunk that is not full."""
    return monitoring_pb2.EarlyWarning(
        chunk_id=value.chunk_id,
        pipeline=value.pipeline,
        model_version=value.version,
        feature=value.feature,
        seen_after=value.seen_after,
        rows=value.rows,
        time=_timestamp(value.made_at),
    )


def prediction(value: domain.Prediction, actual: str) -> monitoring_pb2.GetPredictionResponse:
    """A logged prediction with the label that came later, "" if none has."""
    return monitoring_pb2.GetPredictionResponse(
        prediction_id=value.id,
        pipeline=value.pipeline,
        model_version=value.version,
        record_id=value.record_id,
        time=_timestamp(_EPOCH + timedelta(microseconds=value.time_micros)),
        label=value.label,
        score=value.score,
        actual=actual,
        event_id=value.event_id,
        shadow=value.shadow,
    )


def retrain_requested(value: domain.Request) -> events_pb2.RetrainRequested:
    """A request for a new model."""
    return events_pb2.RetrainRequested(
        pipeline=value.pipeline,
        model_version=value.version,
        chunk_id=value.chunk_id,
        reason=value.reason,
    )
