"""One contract for the registry in memory and for MLflow itself."""

from __future__ import annotations

import itertools
import socket
import time

import pytest

from everloop_registry_gateway.adapters.memory import MemoryRegistry
from everloop_registry_gateway.adapters.mlflow import MlflowRegistry
from everloop_runtime.errors import EverloopError, Kind

_names = itertools.count()


@pytest.fixture(scope="module")
def mlflow_uri(tmp_path_factory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture(params=["memory", pytest.param("mlflow", marks=pytest.mark.slow)])
def registry(request):
    if request.param == "memory":
        return MemoryRegistry()
    return MlflowRegistry(request.getfixturevalue("mlflow_uri"))


@pytest.fixture
def model() -> str:
    return f"model-{next(_names)}"


def ensure(registry, model: str, number: int, **tags: str) -> int:
    run = f"{abs(hash((model, number))):032x}"
    version: int = registry.ensure_version(
        model, f"t-{model}-{number}", run, f"s3://models/{run}", tags
    )
    return version


def test_versions_count_from_one_and_a_training_has_one(registry, model):
    assert [ensure(registry, model, number) for number in (1, 2, 1, 2, 3)] == [1, 2, 1, 2, 3]


def test_two_models_count_for_themselves(registry, model):
    assert ensure(registry, model, 1) == ensure(registry, f"{model}-b", 1) == 1


def test_two_trainings_that_share_a_run_are_two_versions(registry, model):
    first = registry.ensure_version(model, f"{model}-a", "f" * 32, "s3://models/f", {})
    second = registry.ensure_version(model, f"{model}-b", "f" * 32, "s3://models/f", {})
    assert (first, second) == (1, 2)


def test_tags_are_set_at_once_and_merged_later(registry, model):
    ensure(registry, model, 1, colour="blue", size="small")
    registry.set_tags(model, 1, {"size": "large", "stage": "staging"})
    tags = registry.tags(model, 1)
    assert tags["everloop.training_id"] == f"t-{model}-1"
    assert (tags["colour"], tags["size"], tags["stage"]) == ("blue", "large", "staging")


def test_an_alias_stands_for_one_version_at_a_time(registry, model):
    ensure(registry, model, 1)
    ensure(registry, model, 2)
    assert registry.aliases(model) == {}
    registry.set_alias(model, "production", 1)
    registry.set_alias(model, "production", 1)
    registry.set_alias(model, "staging", 2)
    assert registry.aliases(model) == {"production": 1, "staging": 2}
    registry.set_alias(model, "production", 2)
    registry.delete_alias(model, "staging")
    registry.delete_alias(model, "staging")
    assert registry.aliases(model) == {"production": 2}


def test_an_unknown_model_has_no_aliases(registry, model):
    assert registry.aliases(model) == {}


@pytest.mark.parametrize("there", [True, False], ids=["model is there", "model is not"])
def test_what_is_not_there_is_not_found(registry, model, there):
    if there:
        ensure(registry, model, 1)
        registry.check_version(model, 1)
    for attempt in (
        lambda: registry.check_version(model, 7),
        lambda: registry.set_alias(model, "production", 7),
        lambda: registry.set_tags(model, 7, {"a": "b"}),
    ):
        with pytest.raises(EverloopError) as caught:
            attempt()
        assert caught.value.kind is Kind.NOT_FOUND
        assert not registry.away


FILES = {
    "model/model.onnx": b"a graph",
    "model/MLmodel": b"flavors: {}",
    "model/code/more.py": b"",
    "model/code/__pycache__/more.pyc": b"compiled",
    "model/requirements.txt": b"not for replicas",
    "everloop/manifest.json": b"{}",
    "everloop/golden.json": b'{"rows": []}',
    "everloop/reference.parquet": b"not for replicas",
}
SERVED = {
    "model.onnx": b"a graph",
    "model/MLmodel": b"flavors: {}",
    "model/code/more.py": b"",
    "manifest.json": b"{}",
    "golden.json": b'{"rows": []}',
}


@pytest.fixture
def log_files(registry, tmp_path, monkeypatch):
    """Logs files with a new run; returns its id."""
    if isinstance(registry, MemoryRegistry):

        def remember(files: dict[str, bytes]) -> str:
            run = f"{next(_names):032x}"
            registry.files[run] = {
                {"model/model.onnx": "model.onnx"}.get(
                    path, path.removeprefix("everloop/")
                ): content
                for path, content in files.items()
                if content not in (b"compiled", b"not for replicas")
            }
            return run

        return remember
    from mlflow import MlflowClient

    monkeypatch.chdir(tmp_path)
    client = MlflowClient(registry._client.tracking_uri, registry._client.tracking_uri)

    def log(files: dict[str, bytes]) -> str:
        store = (tmp_path / "store").as_uri()
        experiment = client.create_experiment(f"e-{next(_names)}", artifact_location=store)
        run_id: str = client.create_run(experiment).info.run_id
        for path, content in files.items():
            folder, _, name = path.rpartition("/")
            (tmp_path / name).write_bytes(content)
            client.log_artifact(run_id, str(tmp_path / name), folder)
        return run_id

    return log


def downloaded(registry, run: str, folder, most_bytes: int = 1000) -> dict[str, bytes]:
    folder.mkdir()
    registry.download(run, folder, most_bytes)
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_what_replicas_load_is_downloaded_as_it_lies_there_now(registry, log_files, tmp_path):
    assert downloaded(registry, log_files(FILES), tmp_path / "a") == SERVED
    changed = FILES | {"everloop/golden.json": b"[]"}
    del changed["everloop/manifest.json"]
    expected = SERVED | {"golden.json": b"[]"}
    del expected["manifest.json"]
    assert downloaded(registry, log_files(changed), tmp_path / "b") == expected
    assert downloaded(registry, log_files({}), tmp_path / "c") == {}


def test_what_is_too_large_is_not_downloaded(registry, log_files, tmp_path):
    size = sum(map(len, SERVED.values()))
    run = log_files(FILES)
    assert downloaded(registry, run, tmp_path / "a", size) == SERVED
    with pytest.raises(EverloopError) as caught:
        downloaded(registry, run, tmp_path / "b", size - 1)
    assert (caught.value.kind, caught.value.reason) == (Kind.PRECONDITION, "ARTIFACT_TOO_LARGE")


def test_there_are_no_files_of_an_unknown_run(registry, tmp_path):
    with pytest.raises(EverloopError) as caught:
        downloaded(registry, "0" * 31 + "f", tmp_path / "a")
    assert caught.value.kind is Kind.NOT_FOUND


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # MLflow's own
def test_the_files_of_a_logged_model_stand_in_place_of_those_of_its_run(tmp_path, monkeypatch):
    import mlflow
    from onnx import TensorProto, helper

    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    mlflow.set_tracking_uri(uri)
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "same",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 1])],
    )
    onnx = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)])
    with mlflow.start_run() as run:
        mlflow.log_text("of the run", "model/model.onnx")
        mlflow.onnx.log_model(onnx, name="model", pip_requirements=["onnxruntime"])
        mlflow.log_dict({}, "everloop/manifest.json")
    found = downloaded(MlflowRegistry(uri), run.info.run_id, tmp_path / "a", 1 << 20)
    assert found["model.onnx"] == onnx.SerializeToString()
    assert set(found) == {"model.onnx", "manifest.json", "model/MLmodel"}


@pytest.mark.slow
def test_a_store_that_is_away_is_not_taken_for_a_file_that_is(tmp_path, monkeypatch):
    """MLflow answers, and the object store behind it does not."""
    from mlflow import MlflowClient

    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(uri, uri)
    away = f"http://127.0.0.1:{closed_port()}/api/2.0/mlflow-artifacts/artifacts"
    experiment = client.create_experiment("e", artifact_location=away)
    run = client.create_run(experiment).info.run_id
    with pytest.raises(EverloopError) as caught:
        downloaded(MlflowRegistry(uri), run, tmp_path / "a")
    assert caught.value.kind is Kind.UNAVAILABLE


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.slow
def test_a_server_that_is_away_is_unavailable_at_once(tmp_path):
    registry = MlflowRegistry(f"http://127.0.0.1:{closed_port()}")
    assert not registry.away
    for attempt in (
        lambda: registry.aliases("m"),
        lambda: registry.set_alias("m", "production", 1),
        lambda: registry.check_version("m", 1),
        lambda: registry.download("f" * 32, tmp_path, 1000),
        lambda: ensure(registry, "m", 1),
    ):
        began = time.monotonic()
        with pytest.raises(EverloopError) as caught:
            attempt()
        assert caught.value.kind is Kind.UNAVAILABLE
        assert time.monotonic() - began < 2
    assert registry.away


@pytest.mark.slow
def test_a_server_that_does_not_answer_is_unavailable_in_time():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        registry = MlflowRegistry(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_seconds=1)
        began = time.monotonic()
        with pytest.raises(EverloopError) as caught:
            registry.aliases("m")
        assert caught.value.kind is Kind.UNAVAILABLE
        assert time.monotonic() - began < 5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # MLflow's own
@pytest.mark.parametrize("scheme", ["models", "runs"])
def test_a_stock_client_loads_what_the_alias_stands_for(tmp_path, monkeypatch, scheme):
    import mlflow
    import numpy as np
    from onnx import TensorProto, helper

    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    mlflow.set_tracking_uri(uri)
    registry = MlflowRegistry(uri)
    for number in (1, 2):
        graph = helper.make_graph(
            [
                helper.make_node("Constant", [], ["k"], value_float=float(number)),
                helper.make_node("Mul", ["x", "k"], ["y"]),
            ],
            "times",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 1])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 1])],
        )
        onnx = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)])
        with mlflow.start_run() as run:
            logged = mlflow.onnx.log_model(onnx, name="model", pip_requirements=["onnxruntime"])
        run_id = run.info.run_id
        source = logged.model_uri if scheme == "models" else f"runs:/{run_id}/model"
        registry.ensure_version("times", f"t{number}", run_id, source, {})

    for number in (2, 1):
        registry.set_alias("times", "production", number)
        model = mlflow.pyfunc.load_model("models:/times@production")
        answer = model.predict(np.array([[3.0]], dtype=np.float32))
        assert answer["y"].item() == 3.0 * number
