"""Composition root: builds the registry gateway and runs it."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

from prometheus_client import REGISTRY

from everloop_contracts.pipeline import PipelineError, load_pipelines
from everloop_contracts.stubs.everloop.registry.v1 import registry_pb2, registry_pb2_grpc
from everloop_registry_gateway.adapters.mlflow import MlflowRegistry
from everloop_registry_gateway.adapters.store import Store
from everloop_registry_gateway.consumer import on_training
from everloop_registry_gateway.domain import GATEWAY
from everloop_registry_gateway.metrics import VersionsByStage
from everloop_registry_gateway.promote import Promoter
from everloop_registry_gateway.reconcile import Reconciler
from everloop_registry_gateway.register import Registrar
from everloop_registry_gateway.servicer import RegistryServicer
from everloop_registry_gateway.settings import RegistrySettings
from everloop_runtime import telemetry
from everloop_runtime.database import Database
from everloop_runtime.events import TRAININGS
from everloop_runtime.grpc_server import GrpcServer
from everloop_runtime.inbox import InboxSweeper
from everloop_runtime.kafka import EventConsumer, OutboxRelay, Topics
from everloop_runtime.metrics import MetricsServer
from everloop_runtime.service import run

__all__ = ["main"]

SERVICE = registry_pb2.DESCRIPTOR.services_by_name["RegistryService"].full_name


def main() -> int:
    """Runs the service until it is told to stop; returns the exit status."""
    settings = RegistrySettings.load()
    telemetry.configure("registry_gateway", settings.log_level)
    try:
        pipelines = load_pipelines(settings.pipelines_dir)
    except PipelineError as error:
        print(error, file=sys.stderr)
        return 2
    database = Database(settings.database_url)
    database.upgrade(Path(__file__).parent / "migrations")
    registry = MlflowRegistry(settings.mlflow_uri, settings.mlflow_timeout_seconds)
    promoter = Promoter(database, registry, settings.mlflow_timeout_seconds)
    registrar = Registrar(database, registry, promoter, pipelines)
    servicer = RegistryServicer(database, promoter)

    def count_versions() -> dict[tuple[str, str], int]:
        with database.read() as connection:
            return Store(connection).count_by_stage()

    REGISTRY.register(VersionsByStage(count_versions))
    grpc = GrpcServer(
        settings,
        [SERVICE],
        [lambda server: registry_pb2_grpc.add_RegistryServiceServicer_to_server(servicer, server)],
    )
    components = [
        MetricsServer(settings.metrics_address),
        Topics(settings.kafka_bootstrap),
        OutboxRelay(database, settings.kafka_bootstrap),
        InboxSweeper(database, settings.inbox_retention_days),
        Reconciler(
            database,
            promoter,
            settings.reconcile_seconds,
            timedelta(hours=settings.request_retention_hours),
        ),
        EventConsumer(
            settings.kafka_bootstrap,
            GATEWAY,
            [TRAININGS],
            on_training(registrar),
            attempts=settings.consumer_max_attempts,
        ),
        grpc,
    ]
    try:
        return run(components, on_ready=grpc.ready)
    finally:
        database.close()
