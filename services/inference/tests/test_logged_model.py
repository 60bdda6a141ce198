"""Where the export is missing or wrong, the logged model itself serves: rightly, slowly, and not in secret."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from everloop_contracts.stubs.everloop.inference.v1 import inference_pb2 as native
from everloop_features.inputs import feeds_from_rows
from everloop_inference.adapters.engines import LocalEngines
from everloop_inference.adapters.pyfunc import PyfuncEngine, has_other_flavor
from everloop_inference.domain import Call, EngineKind
from everloop_inference.fakes import INPUTS, ROW, Artifact, ask, sample_artifact
from everloop_inference.metrics import SLOW
from everloop_inference.models.load import Loader
from everloop_inference.protocols import native_json, native_proto, oip_json
from everloop_runtime.errors import EverloopError

pytestmark = [
    pytest.mark.slow,  # importing MLflow takes seconds
    pytest.mark.filterwarnings("ignore::UserWarning:mlflow"),
    pytest.mark.filterwarnings("ignore:Any type hint is inferred as AnyType"),
]

ROWS = [
    ROW,
    {**ROW, "age": None, "carrier": "UA", "distance": 900.5},
    {**ROW, "weekend": None, "stops": 4, "departs": "2013-01-01T23:59:00Z"},
    {**ROW, "carrier": "ZZ", "weekend": False, "age": 40.0},
]


class Rule:
    """An estimator of somebody else's: takes the DataFrame that a record makes, and shows what it got."""

    def predict_proba(self, frame: Any) -> Any:
        types = {name: str(dtype) for name, dtype in frame.dtypes.items()}
        assert types == {
            "carrier": "str",
            "distance": "float64",
            "age": "float64",
            "stops": "int64",
            "weekend": "float64",
            "departs": "datetime64[s]",
        }
        hour = frame.departs.dt.hour + frame.departs.dt.minute / 60
        logit = (
            frame.distance / 1000
            + frame.age.fillna(5) / 50
            + frame.stops / 3
            + frame.weekend.fillna(0.5)
            + hour / 24
            + (frame.carrier == "UA")
            - 2
        )
        late = 1 / (1 + np.exp(-logit.to_numpy()))
        return np.stack([1 - late, late], axis=1)


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that a plain MLflow client logged with the flavor of scikit-learn."""
    from mlflow import sklearn

    folder = tmp_path_factory.mktemp("mlflow") / "model"
    sklearn.save_model(
        Rule(),
        folder,
        serialization_format="cloudpickle",
        pyfunc_predict_fn="predict_proba",
        pip_requirements=["scikit-learn"],
    )
    return folder


def artifact(logged: Path, graph: bytes) -> Artifact:
    answers = PyfuncEngine(logged, INPUTS).run(feeds_from_rows(ROWS, INPUTS))
    sample = sample_artifact()
    golden = {"rows": ROWS, "probabilities": answers.tolist()}
    return dataclasses.replace(sample, graph=graph, golden=golden, logged=logged)


@pytest.mark.parametrize("export", ["missing", "wrong", "broken"])
def test_the_logged_model_serves_and_everybody_is_told(
    world: Any,
    logged: Path,
    export: str,
    caplog: pytest.LogCaptureFixture,
    until: Callable[..., None],
) -> None:
    graph = {"missing": b"", "wrong": sample_artifact().graph, "broken": b"nonsense"}[export]
    made = artifact(logged, graph)
    with caplog.at_level(logging.ERROR):
        world.publish(1, made)
        replica = world.replica()
    served = replica.models.served("flights")
    assert served.model.engine.kind is EngineKind.MLFLOW
    assert "will answer slowly, by the logged model instead of its export" in caplog.text
    assert SLOW.labels("flights")._value.get() == 1
    assert native_proto.described(served).engine == native.ENGINE_MLFLOW
    assert native_json.described(served)["engine"] == "ENGINE_MLFLOW"
    assert oip_json.model_metadata(served.model, served.versions)["platform"] == "mlflow_pyfunc"
    answer = ask(replica.predictor, ROWS)
    expected: Any = made.golden["probabilities"]
    np.testing.assert_allclose(answer.probabilities, expected, atol=1e-6)
    # A version with a good export takes its place.
    world.publish(2)
    until(lambda: replica.models.get("flights").engine.kind is EngineKind.ONNX)
    assert SLOW.labels("flights")._value.get() == 0


def test_a_slow_model_batches_what_comes_meanwhile(world: Any, logged: Path) -> None:
    world.publish(1, artifact(logged, b""))
    replica = world.replica()

    async def asking() -> int:
        calls = [
            replica.predictor.rows("flights", [row], Call(time.perf_counter(), 0))
            for row in ROWS * 25
        ]
        answers = await asyncio.gather(*calls)
        return len({answer.prediction_ids[0] for answer in answers})

    assert asyncio.run(asking()) == 100


def test_a_logged_model_that_is_wrong_as_well_does_not_serve(
    world: Any, logged: Path, tmp_path: Path
) -> None:
    made = artifact(logged, sample_artifact().graph)
    golden = {"rows": ROWS, "probabilities": [[0.5, 0.5]] * len(ROWS)}
    wanted = world.publish(1, dataclasses.replace(made, golden=golden))
    loader = Loader(world.artifacts, LocalEngines(), tmp_path / "cache")
    with pytest.raises(EverloopError) as caught:
        loader.load(wanted, world.policies["flights"])
    assert caught.value.reason == "GOLDEN_MISMATCH"


def test_a_changed_export_is_refused_whatever_else_was_logged(
    world: Any, logged: Path, tmp_path: Path
) -> None:
    wanted = world.publish(1, artifact(logged, sample_artifact().graph), sha256="0" * 64)
    with pytest.raises(EverloopError) as caught:
        Loader(world.artifacts, LocalEngines(), tmp_path / "cache").load(
            wanted, world.policies["flights"]
        )
    assert caught.value.reason == "CHECKSUM_MISMATCH"


def test_the_graph_as_a_flavor_is_no_other_flavor(logged: Path, tmp_path: Path) -> None:
    import onnx
    from mlflow import onnx as flavor

    folder = tmp_path / "model"
    flavor.save_model(
        onnx.load_from_string(sample_artifact().graph), folder, pip_requirements=["onnx"]
    )
    assert not has_other_flavor(folder)
    assert has_other_flavor(logged)
    assert not has_other_flavor(tmp_path)
    (tmp_path / "MLmodel").write_text("- what")
    assert not has_other_flavor(tmp_path)
