"""The trainer, put together."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

from everloop_contracts.pipeline import Pipeline, PipelineError, load_pipelines
from everloop_contracts.stubs.everloop.training.v1 import training_pb2_grpc
from everloop_runtime import telemetry
from everloop_runtime.database import Database
from everloop_runtime.grpc_server import GrpcServer
from everloop_runtime.inbox import InboxSweeper
from everloop_runtime.kafka import EventConsumer, OutboxRelay, Topics
from everloop_runtime.metrics import MetricsServer
from everloop_runtime.service import run
from everloop_trainer.adapters.mlflow import MlflowTracking
from everloop_trainer.adapters.s3 import S3Datasets
from everloop_trainer.adapters.services import IngestCutter, RegistryProduction
from everloop_trainer.consumer import GROUP, WATCHED, Handler
from everloop_trainer.families import load_family
from everloop_trainer.request import Requests
from everloop_trainer.search import Cluster, joined
from everloop_trainer.servicer import TrainingServicer
from everloop_trainer.settings import TrainerSettings
from everloop_trainer.train import Train
from everloop_trainer.worker import Worker

__all__ = ["check", "main"]

SERVICE = "everloop.training.v1.TrainingService"


def check(pipelines: Mapping[str, Pipeline]) -> None:
    """Checks what only the trainer knows about pipelines.

    Raises:
        PipelineError: a family that does not exist.
    """
    for name, pipeline in pipelines.items():
        for family in pipeline.training.families:
            try:
                load_family(family)
            except LookupError as error:
                raise PipelineError(f"{name}: training.families: {error}") from error


def main() -> int:
    """Runs the service; returns the exit status."""
    settings = TrainerSettings.load()
    telemetry.configure("trainer", settings.log_level)
    try:
        pipelines = load_pipelines(settings.pipelines_dir)
        check(pipelines)
    except PipelineError as error:
        print(error, file=sys.stderr)
        return 2
    database = Database(settings.database_url)
    database.upgrade(Path(__file__).parent / "migrations")
    tracking = MlflowTracking(settings.mlflow_uri)
    train = Train(
        S3Datasets(settings),
        RegistryProduction(settings.registry_address, settings.patience_seconds, tracking.load),
        tracking,
        Cluster(settings.data_dir / "searches", settings.trial_cpus, settings.trial_gpus),
        lambda: joined(settings.ray_address),
    )
    worker = Worker(
        database,
        pipelines,
        train,
        attempts=settings.training_attempts,
        retry_seconds=settings.retry_seconds,
    )
    cutter = IngestCutter(settings.ingest_address, settings.patience_seconds)
    keep = timedelta(days=settings.inbox_retention_days)
    requests = Requests(database, pipelines, cutter, worker.wake, keep)
    servicer = TrainingServicer(database, requests)
    grpc = GrpcServer(
        settings,
        [SERVICE],
        [lambda server: training_pb2_grpc.add_TrainingServiceServicer_to_server(servicer, server)],
    )
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
            Handler(requests),
            attempts=settings.consumer_max_attempts,
        ),
        grpc,
    ]
    try:
        return run(components, on_ready=grpc.ready)
    finally:
        database.close()
