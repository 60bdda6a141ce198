"""Rollouts of the service itself: its own process, the real broker, the real MLflow server."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from everloop import stack
from everloop.addresses import repository_root
from everloop_contracts.stubs.everloop.monitoring.v1 import events_pb2, monitoring_pb2
from everloop_contracts.stubs.everloop.registry.v1 import registry_pb2 as pb
from everloop_contracts.stubs.everloop.registry.v1 import registry_pb2_grpc
from everloop_contracts.stubs.everloop.training.v1.events_pb2 import ModelTrained
from everloop_registry_gateway.adapters.mlflow import MlflowRegistry
from everloop_runtime.clients import call, channel
from everloop_runtime.events import DRIFT, TRAININGS, Event, encode, new_event
from everloop_runtime.kafka import producer

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(400)]

MODEL = "flight-delays"
ROLLOUT = "promotion:\n  rollout: {strategy: canary, bake: 1s, min_requests: 100}\n"


def eventually(holds: Callable[[], bool], seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Iterator[Path]:
    home: Path = tmp_path_factory.mktemp("gateway")
    pipelines: Path = tmp_path_factory.mktemp("pipelines")
    text = (repository_root() / "pipelines" / f"{MODEL}.yaml").read_text()
    (pipelines / f"{MODEL}.yaml").write_text(text.replace("promotion:\n", ROLLOUT))
    stack.up(home, only=["registry_gateway"], pipelines=pipelines)
    yield home
    stack.down(home)


@pytest.fixture(scope="module")
def registry(home) -> Iterator[registry_pb2_grpc.RegistryServiceStub]:
    with channel(stack.load(home).registry) as connection:
        yield registry_pb2_grpc.RegistryServiceStub(connection)


@pytest.fixture(scope="module")
def send(home) -> Iterator[Callable[[str, Event], None]]:
    """Publishes an event twice: at least once is what a broker promises."""
    publisher = producer(stack.load(home).kafka_bootstrap)

    def send(topic: str, event: Event) -> None:
        key, value, headers = encode(event)
        for _ in range(2):
            publisher.send(topic, key=key, value=value, headers=headers).get(timeout=30)

    yield send
    publisher.close()


def trained(home: Path, number: int, baseline: int) -> Event:
    """The event of a training whose model beats the one that serves."""
    import mlflow

    client = mlflow.MlflowClient(stack.load(home).mlflow_uri)
    run_id = client.create_run("0").info.run_id
    message = ModelTrained(
        pipeline=MODEL,
        training_id=f"training-{number}",
        run_id=run_id,
        model_uri=f"runs:/{run_id}/model",
        family="mlp",
        metrics={"roc_auc": 0.7 + number / 100},
        baseline_version=baseline,
        baseline_metrics={"roc_auc": 0.7} if baseline else {},
        export_difference=1e-6,
    )
    return new_event("test", MODEL, message, id=f"trained-{number}")


def test_a_trial_is_promoted_though_the_gateway_is_killed_and_the_next_is_aborted_by_the_monitor(
    home, registry, send
):
    def served() -> tuple[list[int], list[int]]:
        answer: Any = call(registry.ListProduction, pb.ListProductionRequest(), timeout=30)
        return (
            [version.version for version in answer.versions],
            [trial.version.version for trial in answer.trials],
        )

    def newest() -> pb.Rollout:
        answer = call(registry.ListRollouts, pb.ListRolloutsRequest(model=MODEL), timeout=30)
        found: pb.Rollout = answer.rollouts[0]
        return found

    send(TRAININGS, trained(home, 1, 0))
    eventually(lambda: served() == ([1], []))
    send(TRAININGS, trained(home, 2, 1))
    eventually(lambda: served() == ([1], [2]))

    report = pb.ReportRolloutRequest(
        id=newest().id,
        replica="replica-1",
        sequence=1,
        candidate=pb.ArmStats(requests=200, latency_counts=[200]),
        baseline=pb.ArmStats(requests=200, latency_counts=[200]),
    )
    call(registry.ReportRollout, report, timeout=30)
    killed = stack.kill(home, "registry_gateway")
    stack.wait_healthy(home, "registry_gateway", 90, not_pid=killed)

    def promoted_while_the_replica_reports() -> bool:
        report.sequence += 1
        call(registry.ReportRollout, report, timeout=30)
        return served() == ([2], [])

    eventually(promoted_while_the_replica_reports)
    assert newest().state == pb.ROLLOUT_STATE_PROMOTED
    assert newest().candidate.requests == 200
    assert MlflowRegistry(stack.load(home).mlflow_uri).aliases(MODEL) == {"production": 2}

    send(TRAININGS, trained(home, 3, 2))
    eventually(lambda: served() == ([2], [3]))
    bad = monitoring_pb2.Measurement(measure="roc_auc", value=0.5, lower=0.65, alert=True)
    chunk = monitoring_pb2.Chunk(
        id=f"{MODEL}/3/0", pipeline=MODEL, model_version=3, alert=True, estimated_performance=bad
    )
    send(DRIFT, new_event("test", MODEL, events_pb2.DriftDetected(chunk=chunk), id="drift-1"))
    eventually(lambda: served() == ([2], []))
    ended = newest()
    assert ended.state == pb.ROLLOUT_STATE_ABORTED
    assert "estimated roc_auc 0.5 < 0.65" in ended.reason
    request = pb.GetModelVersionRequest(model=MODEL, version=3)
    rejected = call(registry.GetModelVersion, request, timeout=30).version
    assert (rejected.stage, rejected.gates[-1].gate) == (pb.STAGE_REJECTED, "rollout")
