"""The service itself: its own process, the real broker, the real MLflow server."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer, TopicPartition

from everloop import stack
from everloop_contracts.stubs.everloop.registry.v1 import registry_pb2 as pb
from everloop_contracts.stubs.everloop.registry.v1 import registry_pb2_grpc
from everloop_contracts.stubs.everloop.training.v1.events_pb2 import ModelTrained
from everloop_registry_gateway.adapters.mlflow import MlflowRegistry
from everloop_runtime.clients import call, channel
from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.events import MODELS, TRAININGS, Event, decode, encode, new_event
from everloop_runtime.kafka import producer

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(400)]

MODEL = "flight-delays"
TRAINED = 6


def eventually(holds: Callable[[], bool], seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("gateway")
    stack.up(home, only=["registry_gateway"])
    yield home
    stack.down(home)


@pytest.fixture(scope="module")
def registry(home) -> Iterator[registry_pb2_grpc.RegistryServiceStub]:
    with channel(stack.load(home).registry) as connection:
        yield registry_pb2_grpc.RegistryServiceStub(connection)


def trained(number: int, run_id: str) -> Event:
    """The event of a training whose model beats the version before it."""
    message = ModelTrained(
        pipeline=MODEL,
        training_id=f"training-{number}",
        dataset_version=number,
        dataset_tag=f"{MODEL}/v{number}",
        run_id=run_id,
        model_uri=f"runs:/{run_id}/model",
        family="mlp",
        metrics={"roc_auc": 0.7 + number / 100},
        baseline_version=number - 1,
        baseline_metrics={"roc_auc": 0.7 + (number - 1) / 100} if number > 1 else {},
        export_difference=1e-6,
    )
    return new_event("test", MODEL, message, id=f"trained-{number}", cause="drift-1")


def announced(bootstrap: str) -> list[Event]:
    """Events about models, each once: the relay may send one again, under the same id."""
    consumer = KafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False)
    partitions = [TopicPartition(MODELS, n) for n in consumer.partitions_for_topic(MODELS)]
    consumer.assign(partitions)
    consumer.seek_to_beginning(*partitions)
    ends = consumer.end_offsets(partitions)
    found: dict[str, Event] = {}
    while any(consumer.position(partition) < ends[partition] for partition in partitions):
        for batch in consumer.poll(timeout_ms=200).values():
            for record in batch:
                event = decode(record.value, record.headers)
                found.setdefault(event.id, event)
    consumer.close()
    return list(found.values())


def production(registry: Any) -> int:
    """Version in Production; 0 if there is none, or nobody to ask."""
    try:
        answer = call(registry.ListProduction, pb.ListProductionRequest(model=MODEL), timeout=5)
    except EverloopError as error:
        assert error.kind is Kind.UNAVAILABLE
        return 0
    return next((version.version for version in answer.versions), 0)


@pytest.fixture(scope="module")
def runs(home, registry) -> list[str]:
    """MLflow runs of models that were all announced, registered and promoted while the gateway was killed twice."""
    import mlflow

    there = stack.load(home)
    client = mlflow.MlflowClient(there.mlflow_uri)
    experiment = client.create_experiment("test")
    runs = [client.create_run(experiment).info.run_id for _ in range(TRAINED)]
    publisher = producer(there.kafka_bootstrap)
    for number, run_id in enumerate(runs, start=1):
        key, value, headers = encode(trained(number, run_id))
        for _ in range(2):  # at least once is what a broker promises
            publisher.send(TRAININGS, key=key, value=value, headers=headers)
    publisher.flush()
    publisher.close()
    for version in (1, TRAINED // 2):
        wait_for(registry, version)
        killed = stack.kill(home, "registry_gateway")
        stack.wait_healthy(home, "registry_gateway", 90, not_pid=killed)
    wait_for(registry, TRAINED)
    return runs


def wait_for(registry: Any, version: int) -> None:
    eventually(lambda: production(registry) >= version)


def test_trained_models_reach_production_once_each_though_the_gateway_is_killed(home, runs):
    import mlflow

    there = stack.load(home)
    versions = mlflow.MlflowClient(there.mlflow_uri).search_model_versions(f"name = '{MODEL}'")
    assert sorted(version.run_id for version in versions) == sorted(runs)

    def story() -> list[tuple[str, int]]:
        events: list[Any] = announced(there.kafka_bootstrap)
        return [
            (event.type.rpartition(".")[2], event.data.version.version)
            for event in events
            if not event.cause.startswith("rollback")
        ]

    expected = [
        (kind, number)
        for number in range(1, TRAINED + 1)
        for kind in ("ModelRegistered", "ModelPromoted")
    ]
    eventually(lambda: len(story()) >= len(expected))
    assert story() == expected


def test_a_rollback_shows_in_mlflow_and_in_the_metrics(home, registry, runs):
    before = production(registry)
    request = pb.RollbackModelRequest(model=MODEL, request_id="rollback-1", actor="test")
    for _ in range(2):
        version = call(registry.RollbackModel, request, timeout=30).version
        assert (version.version, version.stage) == (before - 1, pb.STAGE_PRODUCTION)
    assert MlflowRegistry(stack.load(home).mlflow_uri).aliases(MODEL) == {"production": before - 1}

    with urllib.request.urlopen(
        f"http://{stack.load(home).metrics['registry']}/metrics", timeout=10
    ) as answer:
        text = answer.read().decode()
    for sample in (
        f'everloop_registry_model_versions{{model="{MODEL}",stage="production"}} 1.0',
        f'everloop_registry_promotions_total{{model="{MODEL}",move="rollback"}}',
        f'everloop_registry_alias_changes_total{{alias="production",model="{MODEL}"}}',
        "everloop_grpc_requests_total",
        "everloop_events_handled_total",
        "everloop_outbox_relayed_total",
    ):
        assert sample in text


def test_reads_go_on_without_mlflow_and_moves_are_refused(home, registry, runs):
    serving = production(registry)
    killed = stack.kill(home, "mlflow")
    with pytest.raises(EverloopError) as caught:
        call(registry.RollbackModel, pb.RollbackModelRequest(model=MODEL), timeout=30)
    assert caught.value.kind is Kind.UNAVAILABLE
    assert production(registry) == serving
    versions = call(registry.ListModelVersions, pb.ListModelVersionsRequest(), timeout=30)
    assert versions.versions and versions.mlflow_away
    stack.wait_healthy(home, "mlflow", 120, not_pid=killed)
    request = pb.RollbackModelRequest(model=MODEL, request_id="rollback-2")
    answer = call(registry.RollbackModel, request, timeout=30)
    assert answer.version.version == serving - 1
    assert not call(
        registry.GetModelVersion, pb.GetModelVersionRequest(model=MODEL), timeout=30
    ).mlflow_away
