"""Composition root: builds the registry gateway and runs it."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

from prometheus_client import REGISTRY

from everloop_contracts.pipeline import PipelineError, load_pipelines
from everloop_contracts.stubs.everloop.registry.v1 import registry_pb2, registry_pb2_grpc
from everloop_registry_gateway.adapters.artifact_cache import ArtifactCache
from everloop_registry_gateway.adapters.mlflow import MlflowRegistry
from everloop_registry_gateway.adapters.rollouts import RolloutStore
from everloop_registry_gateway.adapters.store import Store
from everloop_registry_gateway.approve import Approvals
from everloop_registry_gateway.artifacts import Artifacts
from everloop_registry_gateway.consumer import on_drift, on_training
from everloop_registry_gateway.domain import GATEWAY
from everloop_registry_gateway.metrics import RolloutsByState, VersionsByStage
from everloop_registry_gateway.observe import Observer, RolloutJudge
from everloop_registry_gateway.promote import Promoter
from everloop_registry_gateway.reconcile import Reconciler
from everloop_registry_gateway.register import Registrar
from everloop_registry_gateway.rollout import Rollouts
from everloop_registry_gateway.servicer import RegistryServicer
from everloop_registry_gateway.settings import RegistrySettings
from everloop_registry_gateway.watch import ProductionWatch
from everloop_registry_gateway.webhooks import Webhooks, hooks_of
from everloop_runtime import telemetry
from everloop_runtime.database import Database
from everloop_runtime.events import DRIFT, TRAININGS
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
    hooks = hooks_of(pipelines, settings.webhook_url)
    if hooks and not settings.webhook_key:
        print(
            f"EVERLOOP_WEBHOOK_SECRET: is needed to sign the webhooks of {', '.join(sorted(hooks))}",
            file=sys.stderr,
        )
        return 2
    database = Database(settings.database_url)
    database.upgrade(Path(__file__).parent / "migrations")
    registry = MlflowRegistry(
        settings.mlflow_uri, settings.mlflow_timeout_seconds, settings.artifact_seconds
    )
    cache = ArtifactCache(settings.data_dir / "artifacts", settings.artifact_cache_bytes)
    artifacts = Artifacts(registry, cache, settings.artifact_seconds)
    promoter = Promoter(database, registry, artifacts, settings.mlflow_timeout_seconds)
    registrar = Registrar(database, registry, artifacts, promoter, pipelines)
    approvals = Approvals(database, promoter, pipelines)
    rollouts = Rollouts(database, promoter, pipelines)
    observer = Observer(
        database,
        promoter,
        settings.rollout_replicas,
        timedelta(seconds=settings.rollout_fresh_seconds),
    )
    servicer = RegistryServicer(
        database,
        promoter,
        approvals,
        rollouts,
        observer,
        artifacts,
        watch := ProductionWatch(database, settings.watch_seconds),
        send_seconds=settings.artifact_seconds,
    )

    def count_versions() -> dict[tuple[str, str], int]:
        with database.read() as connection:
            return Store(connection).count_by_stage()

    def count_rollouts() -> dict[tuple[str, str], int]:
        with database.read() as connection:
            return RolloutStore(connection).count_by_state()

    REGISTRY.register(VersionsByStage(count_versions))
    REGISTRY.register(RolloutsByState(count_rollouts))
    grpc = GrpcServer(
        settings,
        [SERVICE],
        [lambda server: registry_pb2_grpc.add_RegistryServiceServicer_to_server(servicer, server)],
        watched={f"/{SERVICE}/WatchProduction": settings.watchers},
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
        Webhooks(
            database,
            hooks,
            settings.webhook_key,
            timeout_seconds=settings.webhook_timeout_seconds,
            max_attempts=settings.webhook_max_attempts,
        ),
        RolloutJudge(observer, settings.rollout_judge_seconds),
        EventConsumer(
            settings.kafka_bootstrap,
            GATEWAY,
            [TRAININGS],
            on_training(registrar),
            attempts=settings.consumer_max_attempts,
        ),
        # A consumer of its own: alerts must not wait behind a training that waits for MLflow.
        EventConsumer(
            settings.kafka_bootstrap,
            f"{GATEWAY}.drift",
            [DRIFT],
            on_drift(observer),
            attempts=settings.consumer_max_attempts,
        ),
        grpc,
        # Ends before the server does, which waits for those who watch.
        watch,
    ]
    try:
        return run(components, on_ready=grpc.ready)
    finally:
        database.close()
