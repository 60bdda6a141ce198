"""Between the trainer's types and the contracts'."""

from __future__ import annotations

from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from everloop_contracts.stubs.everloop.ingest.v1 import dataset_pb2
from everloop_contracts.stubs.everloop.training.v1 import events_pb2, training_pb2
from everloop_trainer.domain import (
    Cause,
    DataFile,
    Dataset,
    Signature,
    State,
    Trained,
    Training,
)

__all__ = ["dataset_of", "failed_message", "trained_message", "training_message"]

_STATES = {
    State.QUEUED: training_pb2.Training.STATE_QUEUED,
    State.RUNNING: training_pb2.Training.STATE_RUNNING,
    State.SUCCEEDED: training_pb2.Training.STATE_SUCCEEDED,
    State.FAILED: training_pb2.Training.STATE_FAILED,
    State.SUPERSEDED: training_pb2.Training.STATE_SUPERSEDED,
    State.CANCELLED: training_pb2.Training.STATE_CANCELLED,
}
_CAUSES = {
    Cause.FIRST_DATA: training_pb2.CAUSE_FIRST_DATA,
    Cause.NEW_ROWS: training_pb2.CAUSE_NEW_ROWS,
    Cause.DRIFT: training_pb2.CAUSE_DRIFT,
    Cause.REQUEST: training_pb2.CAUSE_REQUEST,
}


def dataset_of(message: dataset_pb2.DatasetVersion) -> Dataset:
    """Reads a dataset version."""
    return Dataset(
        pipeline=message.pipeline,
        version=message.version,
        git_tag=message.git_tag,
        git_commit=message.git_commit,
        rows=message.rows,
        labelled_rows=message.labelled_rows,
        files=tuple(DataFile(item.uri, item.md5) for item in message.objects),
    )


def training_message(training: Training) -> training_pb2.Training:
    """Writes a training."""
    return training_pb2.Training(
        id=training.id,
        pipeline=training.pipeline,
        dataset_version=training.dataset.version,
        state=_STATES[training.state],
        cause=_CAUSES[training.cause],
        cause_id=training.cause_id,
        trials_done=training.trials_done,
        trials_total=training.trials_total,
        best_metric=training.best_metric or 0.0,
        best_family=training.best_family,
        run_id=training.run_id,
        create_time=_timestamp(training.create_time),
        start_time=_timestamp(training.start_time),
        end_time=_timestamp(training.end_time),
        cancel_time=_timestamp(training.cancel_time),
        error=training.error,
    )


def _timestamp(moment: datetime | None) -> Timestamp | None:
    if moment is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp


def trained_message(training: Training, trained: Trained) -> events_pb2.ModelTrained:
    """Announces a model."""
    return events_pb2.ModelTrained(
        pipeline=training.pipeline,
        training_id=training.id,
        dataset_version=training.dataset.version,
        dataset_tag=training.dataset.git_tag,
        run_id=trained.run_id,
        model_uri=trained.model_uri,
        family=trained.family,
        metrics=trained.metrics,
        baseline_version=trained.baseline_version,
        baseline_metrics=trained.baseline_metrics,
        export_difference=trained.export_difference,
        cause=_CAUSES[training.cause],
        onnx_sha256=trained.onnx_sha256,
        training_seconds=trained.seconds,
        training_rows=trained.training_rows,
        holdout_rows=trained.holdout_rows,
        intervals={
            name: events_pb2.MetricInterval(low=low, high=high)
            for name, (low, high) in trained.intervals.items()
        },
        slices=[
            events_pb2.SliceMetrics(
                field=part.field,
                value=part.value,
                rows=part.rows,
                metrics=part.metrics,
                baseline_metrics=part.baseline_metrics,
            )
            for part in trained.slices
        ],
        scores_path=trained.scores_path,
        model_bytes=trained.model_bytes,
        p99_seconds=trained.p99_seconds,
        cpu_seconds=trained.cpu_seconds,
        threshold=trained.threshold,
        gains={
            name: events_pb2.ResampledGains(values=values) for name, values in trained.gains.items()
        },
        signature=_signature(trained.signature),
        baseline_signature=_signature(trained.baseline_signature),
    )


def _signature(signature: Signature | None) -> events_pb2.ModelSignature | None:
    if signature is None:
        return None
    return events_pb2.ModelSignature(
        inputs=[
            events_pb2.ModelInput(name=spec.name, type=spec.type.value, nullable=spec.nullable)
            for spec in signature.inputs
        ],
        classes=signature.classes,
    )


def failed_message(training: Training, error: str) -> events_pb2.TrainingFailed:
    """Announces that there is no model."""
    return events_pb2.TrainingFailed(
        pipeline=training.pipeline,
        training_id=training.id,
        dataset_version=training.dataset.version,
        error=error,
    )
