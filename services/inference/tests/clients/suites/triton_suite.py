"""tritonclient, over HTTP and over gRPC."""

from __future__ import annotations

import json
import os
import queue
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

FACTS = json.loads(Path(os.environ["EVERLOOP_FACTS"]).read_text())
EXPECTED = np.array(FACTS["probabilities"], np.float32)
COUNT = len(EXPECTED)
NUMPY = {
    "carrier": np.object_,
    "distance": np.float64,
    "age": np.float32,
    "stops": np.int32,
    "weekend": np.bool_,
    "departs": np.int64,
}
COLUMNS = {name: np.array(FACTS["columns"][name], dtype) for name, dtype in NUMPY.items()}


class Http:
    """What differs between the two: how a client and its tensors are made."""

    module: Any = triton_http
    name = "http"

    def client(self) -> Any:
        return triton_http.InferenceServerClient(FACTS["http"], concurrency=4)


class Grpc:
    module: Any = triton_grpc
    name = "grpc"

    def client(self) -> Any:
        return triton_grpc.InferenceServerClient(FACTS["grpc"])


@pytest.fixture(params=[Http, Grpc], ids=["http", "grpc"])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param()


@pytest.fixture
def client(kind: Any) -> Any:
    client = kind.client()
    yield client
    client.close()


def tensor(kind: Any, name: str, values: Any, datatype: str = "", **options: Any) -> Any:
    made = kind.module.InferInput(
        name, list(values.shape), datatype or np_to_triton_dtype(values.dtype)
    )
    made.set_data_from_numpy(values, **options)
    return made


def tensors(kind: Any, columns: dict[str, Any], **options: Any) -> list[Any]:
    return [tensor(kind, name, values, **options) for name, values in columns.items()]


def plain(result: Any) -> dict[str, Any]:
    """The response as a document, whichever door it came through."""
    found = result.get_response()
    if isinstance(found, dict):
        return found
    return {
        "model_name": found.model_name,
        "model_version": found.model_version,
        "id": found.id,
        "outputs": [{"name": item.name} for item in found.outputs],
    }


def test_health_and_metadata(kind: Any, client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("flights")
    assert client.is_model_ready("flights", "1")
    server: Any = client.get_server_metadata()
    model: Any = client.get_model_metadata("flights", "1")
    index: Any = client.get_model_repository_index()
    if kind.name == "grpc":
        from google.protobuf.json_format import MessageToDict

        server, model, index = (
            MessageToDict(item, preserving_proto_field_name=True) for item in (server, model, index)
        )
        index = index["models"]
    assert server["name"] == "everloop-inference"
    assert "binary_tensor_data" in server["extensions"]
    assert [item["name"] for item in model["inputs"]] == list(COLUMNS)
    assert {item["name"] for item in model["outputs"]} == {
        "probabilities",
        "label",
        "prediction_id",
    }
    (listed,) = index
    assert (listed["name"], listed["version"], listed["state"]) == ("flights", "1", "READY")


def test_what_is_not_served(kind: Any, client: Any) -> None:
    if kind.name == "http":
        assert not client.is_model_ready("ghost")
        assert not client.is_model_ready("flights", "2")
    for call in (
        lambda: client.get_model_metadata("ghost"),
        lambda: client.infer("ghost", tensors(kind, COLUMNS)),
        lambda: client.infer("flights", tensors(kind, COLUMNS), model_version="2"),
    ):
        with pytest.raises(InferenceServerException, match=r"not served|is served"):
            call()


def test_a_request_as_it_comes(kind: Any, client: Any) -> None:
    """Over HTTP both ways in binary, over gRPC both ways raw: that is what the client does unless told otherwise."""
    result = client.infer("flights", tensors(kind, COLUMNS), request_id="call-7")
    np.testing.assert_allclose(result.as_numpy("probabilities"), EXPECTED, atol=1e-6)
    assert [item.decode() for item in result.as_numpy("label")] == FACTS["labels"]
    assert len({item for item in result.as_numpy("prediction_id")}) == COUNT
    document = plain(result)
    assert (document["model_name"], document["model_version"]) == ("flights", "1")
    assert document["id"] == "call-7"


def test_columns_of_one_value_each(kind: Any, client: Any) -> None:
    columns = {name: values.reshape(-1, 1) for name, values in COLUMNS.items()}
    result = client.infer("flights", tensors(kind, columns), model_version="1")
    np.testing.assert_allclose(result.as_numpy("probabilities"), EXPECTED, atol=1e-6)


def test_only_what_is_asked_for(kind: Any, client: Any) -> None:
    wanted = [kind.module.InferRequestedOutput(name) for name in ("label", "probabilities")]
    result = client.infer("flights", tensors(kind, COLUMNS), outputs=wanted)
    assert [item["name"] for item in plain(result)["outputs"]] == ["label", "probabilities"]
    np.testing.assert_allclose(result.as_numpy("probabilities"), EXPECTED, atol=1e-6)
    assert result.as_numpy("prediction_id") is None
    with pytest.raises(InferenceServerException, match="no such output"):
        wanted = [kind.module.InferRequestedOutput("nonsense")]
        client.infer("flights", tensors(kind, COLUMNS), outputs=wanted)


@pytest.mark.parametrize("inputs", [True, False])
@pytest.mark.parametrize("outputs", [True, False])
def test_binary_and_json_in_every_mixture(inputs: bool, outputs: bool) -> None:
    kind = Http()
    client = kind.client()
    given = tensors(kind, COLUMNS, binary_data=inputs)
    # One tensor the other way: the two may be mixed in a request.
    given[1] = tensor(kind, "distance", COLUMNS["distance"], binary_data=not inputs)
    wanted = [
        triton_http.InferRequestedOutput("probabilities", binary_data=outputs),
        triton_http.InferRequestedOutput("label", binary_data=not outputs),
    ]
    result = client.infer("flights", given, outputs=wanted)
    np.testing.assert_allclose(result.as_numpy("probabilities"), EXPECTED, atol=1e-6)
    labels = [str(item, "utf-8") if outputs is False else item for item in result.as_numpy("label")]
    assert [item if isinstance(item, str) else item.decode() for item in labels] == FACTS["labels"]
    client.close()


@pytest.mark.parametrize(
    "dtype",
    [
        *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("float16", "float32", "float64"),
    ],
)
def test_every_type_of_number(kind: Any, client: Any, dtype: str) -> None:
    numbers = {name: COLUMNS[name].astype(dtype) for name in ("distance", "age", "stops")}
    result = client.infer("flights", tensors(kind, {**COLUMNS, **numbers}))
    np.testing.assert_allclose(result.as_numpy("probabilities"), EXPECTED, atol=1e-6)


def test_bfloat16(kind: Any, client: Any) -> None:
    given = tensors(kind, COLUMNS)
    given[1] = tensor(kind, "distance", COLUMNS["distance"].astype(ml_dtypes.bfloat16), "BF16")
    result = client.infer("flights", given)
    np.testing.assert_allclose(result.as_numpy("probabilities"), EXPECTED, atol=1e-6)


def test_timestamps_as_texts_and_record_ids(kind: Any, client: Any) -> None:
    texts = np.array([row["departs"] for row in FACTS["rows"]], np.object_)
    records = np.array([row["flight_id"] for row in FACTS["rows"]], np.object_)
    result = client.infer(
        "flights", tensors(kind, {**COLUMNS, "departs": texts, "flight_id": records})
    )
    np.testing.assert_allclose(result.as_numpy("probabilities"), EXPECTED, atol=1e-6)


def test_parameters_are_accepted(kind: Any, client: Any) -> None:
    result = client.infer(
        "flights",
        tensors(kind, COLUMNS),
        sequence_id=3,
        sequence_start=True,
        priority=1,
        timeout=1_000_000,
        parameters={"mine": "x", "number": 3, "flag": True},
    )
    np.testing.assert_allclose(result.as_numpy("probabilities"), EXPECTED, atol=1e-6)


def test_classification_and_shared_memory_are_refused(kind: Any, client: Any) -> None:
    wanted = [kind.module.InferRequestedOutput("probabilities", class_count=1)]
    with pytest.raises(InferenceServerException, match="not supported"):
        client.infer("flights", tensors(kind, COLUMNS), outputs=wanted)
    given = tensors(kind, COLUMNS)
    given[1].set_shared_memory("region", 24)
    with pytest.raises(InferenceServerException, match=r"not supported|raw contents"):
        client.infer("flights", given)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compression(kind: Any, client: Any, algorithm: str) -> None:
    options = (
        {"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm}
        if kind.name == "http"
        else {"compression_algorithm": algorithm}
    )
    result = client.infer("flights", tensors(kind, COLUMNS), **options)
    np.testing.assert_allclose(result.as_numpy("probabilities"), EXPECTED, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"distance": COLUMNS["distance"][:1]}, "rows, others have"),
        ({"distance": COLUMNS["distance"].reshape(1, -1)}, "is not \\[rows\\]"),
        ({"distance": COLUMNS["carrier"]}, "must be numbers"),
        ({"stops": np.array([0.5] * COUNT, np.float32)}, "whole number"),
        ({"more": COLUMNS["distance"]}, "no such input"),
        ({"distance": None}, "missing"),
        ({name: values[:0] for name, values in COLUMNS.items()}, "no rows"),
    ],
)
def test_what_breaks_the_signature(
    kind: Any, client: Any, change: dict[str, Any], message: str
) -> None:
    columns = {**COLUMNS, **change}
    given = tensors(kind, {name: item for name, item in columns.items() if item is not None})
    with pytest.raises(InferenceServerException, match=message):
        client.infer("flights", given)


def test_many_rows(kind: Any, client: Any) -> None:
    columns = {name: np.tile(values, 30) for name, values in COLUMNS.items()}
    result = client.infer("flights", tensors(kind, columns))
    expected = np.tile(EXPECTED, (30, 1))
    np.testing.assert_allclose(result.as_numpy("probabilities"), expected, atol=1e-6)


def test_asynchronous_requests_over_http() -> None:
    kind = Http()
    client = kind.client()
    waiting = [
        client.async_infer("flights", tensors(kind, COLUMNS), request_id=str(number))
        for number in range(50)
    ]
    for number, call in enumerate(waiting):
        result = call.get_result()
        assert plain(result)["id"] == str(number)
        np.testing.assert_allclose(result.as_numpy("probabilities"), EXPECTED, atol=1e-6)
    client.close()


def test_asynchronous_requests_over_grpc() -> None:
    kind = Grpc()
    client = kind.client()
    answers: queue.Queue[Any] = queue.Queue()
    for number in range(50):
        client.async_infer(
            "flights",
            tensors(kind, COLUMNS),
            callback=lambda result, error: answers.put((result, error)),
            request_id=str(number),
        )
    found = [answers.get(timeout=30) for _ in range(50)]
    assert all(error is None for _, error in found)
    assert {plain(result)["id"] for result, _ in found} == {str(number) for number in range(50)}
    client.close()


def test_many_clients_at_once_get_their_own_answers() -> None:
    def ask(number: int) -> bool:
        kind = Grpc() if number % 2 else Http()
        client = kind.client()
        row = number % COUNT
        columns = {name: values[row : row + 1] for name, values in COLUMNS.items()}
        for _ in range(20):
            result = client.infer("flights", tensors(kind, columns), request_id=f"r{number}")
            np.testing.assert_allclose(
                result.as_numpy("probabilities"), EXPECTED[row : row + 1], atol=1e-6
            )
            assert plain(result)["id"] == f"r{number}"
        client.close()
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(8)))
