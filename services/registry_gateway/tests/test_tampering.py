"""A model's file that is not the one that was judged goes nowhere near Production."""

from __future__ import annotations

import hashlib

import pytest

from everloop_registry_gateway.adapters.mlflow import MlflowRegistry
from everloop_registry_gateway.domain import Act
from everloop_runtime.errors import EverloopError, Kind

OTHER = "cd" * 32


def tamper(world, number: int) -> None:
    world.registry.digests[f"{number:032x}"] = OTHER


def refusal(action) -> EverloopError:
    with pytest.raises(EverloopError) as caught:
        action()
    return caught.value


@pytest.fixture
def two(world):
    """One version that served, one that serves, and one that waits; the first and the last were tampered with."""
    world.register(1)
    world.register(2)
    world.use(approval="manual")
    world.register(3)
    for number in (1, 3):
        tamper(world, number)
    return world


@pytest.mark.parametrize(
    "act",
    [
        lambda world: world.promote(3, request_id="r"),
        lambda world: world.promote(1),
        lambda world: world.rollback(),
        lambda world: world.rule(Act.APPROVE, 3),
    ],
    ids=["promote", "promote an archived one", "roll back", "approve"],
)
def test_a_file_that_was_changed_since_is_refused_with_its_digests(two, act):
    before = two.etag(), two.trail(), two.announced(), two.aliases()
    error = refusal(lambda: act(two))
    assert (error.kind, error.reason) == (Kind.PRECONDITION, "ARTIFACT_CHANGED")
    assert OTHER in error.message and "ab" * 32 in error.message
    assert (two.etag(), two.trail(), two.announced(), two.aliases()) == before


def test_what_was_changed_can_be_rejected(two):
    assert two.rule(Act.REJECT, 3).stage == "rejected"


def test_a_file_that_is_gone_is_not_promoted(two):
    del two.registry.digests[f"{3:032x}"]
    assert refusal(lambda: two.promote(3)).kind is Kind.NOT_FOUND


def test_a_file_that_was_changed_before_it_was_registered_is_rejected_with_the_reason(world):
    world.register(1)
    late = world.train(2)
    tamper(world, 2)
    world.registrar.register(late)
    assert world.stages() == {1: "production", 2: "rejected"}
    (verdict,) = [gate for gate in world.events()[-1].data.version.gates if not gate.passed]
    assert (verdict.gate, OTHER in verdict.message) == ("artifact", True)
    assert refusal(lambda: world.promote(2)).reason == "GATES_NOT_PASSED"


def test_a_trial_whose_file_was_changed_is_taken_back(world):
    world.register(1)
    world.use(rollout={"strategy": "canary", "bake": "10m", "min_requests": 100})
    world.register(2)
    world.report(200)
    tamper(world, 2)
    error = refusal(lambda: world.end(world.rollout(), promote=True))
    assert error.reason == "ARTIFACT_CHANGED"
    assert world.rollout().state == "running"
    world.judge(minutes=10)
    assert world.rollout().state == "aborted"
    assert OTHER in world.rollout().reason
    assert world.stages() == {1: "production", 2: "rejected"}


@pytest.mark.slow
def test_a_file_changed_in_mlflow_itself_is_refused(world, tmp_path, monkeypatch):
    """The whole way, with MLflow's own store of files."""
    from mlflow import MlflowClient

    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(uri, uri)
    experiment = client.create_experiment("late")
    runs = [client.create_run(experiment).info.run_id for _ in "ab"]
    for run in runs:
        write(client, run, tmp_path, b"as trained")
    train = world.train
    digest = hashlib.sha256(b"as trained").hexdigest()
    candidates = [
        lambda number=number, run=run: train(
            number, run_id=run, model_uri=f"runs:/{run}/model", onnx_sha256=digest
        )
        for number, run in enumerate(runs, start=1)
    ]
    memory, world.registry = world.registry, MlflowRegistry(uri)
    world.registry.digests = memory.digests
    world.use(approval="manual")
    for candidate in candidates:
        world.registrar.register(candidate())
    assert world.promote(1).stage == "production"
    write(client, runs[1], tmp_path, b"as somebody left it")
    error = refusal(lambda: world.promote(2))
    assert (error.kind, error.reason) == (Kind.PRECONDITION, "ARTIFACT_CHANGED")
    assert world.aliases()["production"] == 1


def write(client, run: str, folder, content: bytes) -> None:
    (folder / "model.onnx").write_bytes(content)
    client.log_artifact(run, str(folder / "model.onnx"), "model")
