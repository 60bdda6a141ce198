"""A model's file that is not the one that was judged goes nowhere near Production."""

from __future__ import annotations

import hashlib

import pytest
import sqlalchemy as sa

from everloop_registry_gateway.adapters.mlflow import MlflowRegistry
from everloop_registry_gateway.domain import Act
from everloop_runtime.errors import EverloopError, Kind

ANOTHER = b"another graph"
OTHER = hashlib.sha256(ANOTHER).hexdigest()


def tamper(world, number: int, path: str = "model.onnx", content: bytes | None = ANOTHER) -> None:
    """Changes a file of a run, or takes it away."""
    files = world.registry.files[f"{number:032x}"]
    files.pop(path, None)
    if content is not None:
        files[path] = content


def forget_files(world) -> None:
    """As if all versions had been registered before files were recorded."""
    with world.database.unit_of_work() as work:
        work.connection.execute(sa.text("UPDATE model_versions SET files = NULL"))


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
    assert OTHER in error.message and two.train(9).onnx_sha256 in error.message
    assert (two.etag(), two.trail(), two.announced(), two.aliases()) == before


def test_what_was_changed_can_be_rejected(two):
    assert two.rule(Act.REJECT, 3).stage == "rejected"


def test_a_file_that_is_gone_is_not_promoted(two):
    tamper(two, 3, content=None)
    assert refusal(lambda: two.promote(3)).kind is Kind.NOT_FOUND


@pytest.mark.parametrize("path", ["manifest.json", "golden.json", "model/MLmodel", "model/new.py"])
@pytest.mark.parametrize("content", [b"changed", None], ids=["changed", "gone"])
def test_any_file_that_replicas_load_counts_and_is_named(world, path, content):
    world.register(1)
    world.use(approval="manual")
    world.register(2)
    tamper(world, 2, path, content)
    if path == "model/new.py" and content is None:
        assert world.promote(2).stage == "production"
        return
    error = refusal(lambda: world.promote(2))
    assert (error.reason, path in error.message) == ("ARTIFACT_CHANGED", True)
    assert world.production() == 1
    # The copy that the gateway made at registration is as good as ever: it does not count.
    assert list(world.artifacts.parts(world.ask(lambda store: store.version("late", 2))))


def test_the_files_of_a_version_are_told_to_mlflow_too(world):
    world.register(1)
    version = world.ask(lambda store: store.version("late", 1))
    assert set(version.files) == {"model.onnx", "manifest.json", "golden.json", "model/MLmodel"}
    assert world.registry.tags("late", 1)["everloop.artifact_sha256"] == version.artifact_sha256


def test_a_version_from_before_files_were_recorded_is_judged_by_its_graph(world):
    world.register(1)
    world.use(approval="manual")
    world.register(2)
    world.register(3)
    forget_files(world)
    tamper(world, 2, "golden.json", b"changed")
    assert world.promote(2, request_id="r").artifact_sha256 == ""
    tamper(world, 3)
    assert refusal(lambda: world.promote(3)).reason == "ARTIFACT_CHANGED"
    assert world.rollback().version == 1
    assert world.promote(2, request_id="r").version == 2  # the answer that was kept


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
    world.registry.files = memory.files
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
