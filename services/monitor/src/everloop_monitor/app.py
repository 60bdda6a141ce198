"""The monitor, put together."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from everloop_contracts.pipeline import Pipeline, PipelineError, load_pipelines
from everloop_contracts.stubs.everloop.monitoring.v1 import monitoring_pb2_grpc
from everloop_monitor.adapters.mlflow import MlflowReferences
from everloop_monitor.adapters.nannyml import NannymlDetectors
from everloop_monitor.consumer import GROUP, WATCHED, handler
from everloop_monitor.detectors import known_detectors
from everloop_monitor.evaluate import Evaluator
from everloop_monitor.retention import Bounds, keep_within_bounds
from everloop_monitor.servicer import MonitoringServicer
from everloop_monitor.settings import MonitorSettings
from everloop_monitor.warn import Lookout
from everloop_monitor.worker import Chore, Worker
from everloop_runtime import telemetry
from everloop_runtime.database import Database
from everloop_runtime.grpc_server import GrpcServer
from everloop_runtime.inbox import InboxSweeper
from everloop_runtime.kafka import EventConsumer, OutboxRelay, Topics
from everloop_runtime.metrics import MetricsServer
from everloop_runtime.service import run

__all__ = ["MIGRATIONS", "grpc_server", "main"]

MIGRATIONS = Path(__file__).parent / "migrations"

SERVICE = "everloop.monitoring.v1.MonitoringService"

_LAG_SECONDS = 1.0


def main() -> int:
    """Runs the service; returns the exit status."""
    settings = MonitorSettings.load()
    telemetry.configure("monitor", settings.log_level)
    try:
        pipelines = load_pipelines(settings.pipelines_dir)
    except PipelineError as error:
        print(error, file=sys.stderr)
        return 2
    for pipeline in pipelines.values():
        if pipeline.monitoring.chunk_rows > settings.retained_rows:
            print(
                f"EVERLOOP_RETAINED_ROWS: {settings.retained_rows} rows hold no chunk of pipeline "
                f"{pipeline.name} (monitoring.chunk_rows: {pipeline.monitoring.chunk_rows})",
                file=sys.stderr,
            )
            return 2
        unknown = set(pipeline.monitoring.detectors) - known_detectors()
        if unknown:
            print(
                f"pipeline {pipeline.name}: monitoring.detectors: there is no detector"
                f" '{min(unknown)}'; there are: {', '.join(sorted(known_detectors()))}",
                file=sys.stderr,
            )
            return 2
    database = Database(settings.database_url)
    database.upgrade(MIGRATIONS)
    worker = _worker(settings, database, pipelines)
    grpc = grpc_server(settings, database, pipelines)
    components = [
        MetricsServer(settings.metrics_address),
        Topics(settings.kafka_bootstrap),
        OutboxRelay(database, settings.kafka_bootstrap),
        InboxSweeper(database, settings.inbox_retention_days),
        worker,
        EventConsumer(
            settings.kafka_bootstrap,
            GROUP,
            WATCHED,
            handler(database, pipelines, worker.wake),
            attempts=settings.consumer_max_attempts,
        ),
        grpc,
    ]
    try:
        return run(components, on_ready=grpc.ready)
    finally:
        database.close()


def _worker(
    settings: MonitorSettings, database: Database, pipelines: Mapping[str, Pipeline]
) -> Worker:
    references = MlflowReferences(settings.mlflow_uri, settings.mlflow_timeout_seconds)
    detectors = NannymlDetectors(references, keep=settings.fitted_models)
    evaluator = Evaluator(
        database,
        pipelines,
        detectors,
        retry_seconds=settings.retry_seconds,
        attempts=settings.evaluation_attempts,
    )
    bounds = Bounds(
        retained_rows=settings.retained_rows,
        retained_labels=settings.retained_labels,
        retained_label_days=settings.retained_label_days,
        waiting_chunks=settings.waiting_chunks,
        retained_chunks=settings.retained_chunks,
        retained_decisions=settings.retained_decisions,
        retained_versions=settings.retained_versions,
    )
    lookout = Lookout(database, pipelines, detectors)
    chores = (
        Chore(evaluator.show_lag, _LAG_SECONDS),
        Chore(
            lambda: keep_within_bounds(database, bounds, datetime.now(UTC)),
            settings.maintenance_seconds,
        ),
        Chore(lookout.look, settings.early_warning_seconds),
    )
    return Worker(evaluator, detectors.prepare, chores)


def grpc_server(
    settings: MonitorSettings, database: Database, pipelines: Mapping[str, Pipeline]
) -> GrpcServer:
    """The monitor's server, not started."""
    servicer = MonitoringServicer(database, pipelines)
    return GrpcServer(
        settings,
        [SERVICE],
        [
            lambda server: monitoring_pb2_grpc.add_MonitoringServiceServicer_to_server(
                servicer, server
            )
        ],
        watched={f"/{SERVICE}/Watch": settings.watchers},
    )
