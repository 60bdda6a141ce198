"""The four doors give the same answers and refuse the same things."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.struct_pb2 import Struct
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from everloop_contracts.stubs.everloop.inference.v1 import inference_pb2 as native
from everloop_contracts.stubs.everloop.inference.v1 import inference_pb2_grpc as native_grpc
from everloop_contracts.stubs.inference import grpc_service_pb2 as oip
from everloop_contracts.stubs.inference import grpc_service_pb2_grpc as oip_grpc
from everloop_features.inputs import Feeds, feeds_from_rows
from everloop_inference.batching import Batcher
from everloop_inference.domain import Engine, EngineKind, ServingPolicy
from everloop_inference.fakes import INPUTS, ROW, sample_artifact
from everloop_inference.metrics import DROPPED

DATATYPES = {
    "carrier": "BYTES",
    "distance": "FP64",
    "age": "FP32",
    "stops": "INT32",
    "weekend": "FP32",
    "departs": "INT64",
}
NUMPY = {"FP64": np.float64, "FP32": np.float32, "INT32": np.int32, "INT64": np.int64}
TYPED = {
    "FP64": "fp64_contents",
    "FP32": "fp32_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
}


both_servers = pytest.mark.parametrize("world", ["native", "grpcio"], indirect=True)


class Doors:
    def __init__(self, world: Any) -> None:
        self.world = world
        self.replica = world.replica()
        self.channel = grpc.insecure_channel(world.settings.predict_grpc_address)
        self.oip = oip_grpc.GRPCInferenceServiceStub(self.channel)
        self.native = native_grpc.InferenceServiceStub(self.channel)

    def http(
        self, method: str, path: str, body: object = None, **headers: str
    ) -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPConnection(self.world.settings.http_address, timeout=10)
        content = body if isinstance(body, bytes) or body is None else json.dumps(body)
        connection.request(method, path, content, headers)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        return answer.status, json.loads(data)


@pytest.fixture
def doors(world: Any) -> Iterator[Doors]:
    world.publish(1)
    doors = Doors(world)
    yield doors
    doors.channel.close()


def columns(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: values.ravel() for name, values in feeds_from_rows(rows, INPUTS).items()}


def tensors(rows: list[dict[str, Any]], nested: bool = False) -> list[dict[str, Any]]:
    def data(name: str, values: Any) -> list[Any]:
        plain: list[Any] = [None if value != value else value for value in values.tolist()]
        if DATATYPES[name] == "INT32":
            plain = [int(value) for value in plain]
        return [[value] for value in plain] if nested else plain

    return [
        {
            "name": name,
            "datatype": DATATYPES[name],
            "shape": [len(rows), 1] if nested else [len(rows)],
            "data": data(name, values),
        }
        for name, values in columns(rows).items()
    ]


def infer_request(rows: list[dict[str, Any]], raw: bool) -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(model_name="flights", id="call-7")
    for name, values in columns(rows).items():
        datatype = DATATYPES[name]
        item = request.inputs.add(name=name, datatype=datatype, shape=[len(rows), 1])
        if datatype == "BYTES":
            texts = [value.encode() for value in values]
            if raw:
                packed = b"".join(struct.pack("<I", len(text)) + text for text in texts)
                request.raw_input_contents.append(packed)
            else:
                item.contents.bytes_contents.extend(texts)
            continue
        numbers = values.astype(NUMPY[datatype])
        if raw:
            request.raw_input_contents.append(numbers.tobytes())
        else:
            getattr(item.contents, TYPED[datatype]).extend(numbers.tolist())
    return request


def struct_rows(rows: list[dict[str, Any]]) -> list[Struct]:
    made = []
    for row in rows:
        item = Struct()
        item.update(row)
        made.append(item)
    return made


ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "carrier": st.sampled_from(["AA", "UA", "zürich", ""]),
            "distance": st.floats(0, 5000, width=32),
            "age": st.none() | st.floats(0, 99, width=32),
            "stops": st.integers(0, 5),
            "weekend": st.none() | st.booleans(),
            "departs": st.datetimes(
                min_value=datetime(1990, 1, 1), max_value=datetime(2040, 1, 1)
            ).map(lambda moment: moment.isoformat() + "Z"),
        }
    ),
    min_size=1,
    max_size=8,
)


@both_servers
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS)
def test_every_door_gives_the_model_s_own_answer(doors: Doors, rows: list[dict[str, Any]]) -> None:
    model = doors.replica.models.get("flights")
    expected = model.run(feeds_from_rows(rows, INPUTS)).astype(np.float64)

    status, answer = doors.http("POST", "/v1/models/flights:predict", {"rows": rows})
    assert status == 200, answer
    found: dict[str, Any] = {"http": [item["probabilities"] for item in answer["predictions"]]}
    for nested in (False, True):
        status, answer = doors.http(
            "POST", "/v2/models/flights/infer", {"inputs": tensors(rows, nested)}
        )
        assert status == 200, answer
        (output,) = (item for item in answer["outputs"] if item["name"] == "probabilities")
        found[f"oip http {nested}"] = np.reshape(output["data"], output["shape"])
    predicted = doors.native.Predict(
        native.PredictRequest(model="flights", rows=struct_rows(rows))
    ).predictions
    found["grpc"] = [list(item.probabilities) for item in predicted]
    for raw in (False, True):
        response = doors.oip.ModelInfer(infer_request(rows, raw))
        assert response.id == "call-7"
        (index,) = (i for i, o in enumerate(response.outputs) if o.name == "probabilities")
        values = (
            np.frombuffer(response.raw_output_contents[index], np.float32)
            if raw
            else response.outputs[index].contents.fp32_contents
        )
        found[f"oip grpc {raw}"] = np.reshape(values, response.outputs[index].shape)
    for door, probabilities in found.items():
        np.testing.assert_array_equal(np.asarray(probabilities, np.float64), expected, err_msg=door)
    labels = ["true" if row[1] >= 0.5 else "false" for row in expected]
    assert [item.label for item in predicted] == labels
    assert [item.score for item in predicted] == expected[:, 1].tolist()


def test_prediction_ids_are_unique_over_doors_and_rows(doors: Doors) -> None:
    ids = []
    for _ in range(5):
        _, answer = doors.http("POST", "/v1/models/flights:predict", {"rows": [ROW] * 3})
        ids += [item["prediction_id"] for item in answer["predictions"]]
        response = doors.oip.ModelInfer(infer_request([ROW, ROW], raw=False))
        ids += [value.decode() for value in response.outputs[2].contents.bytes_contents]
    assert len(set(ids)) == len(ids) == 25
    epoch, _, counter = ids[0].partition("-")
    assert len(epoch) == 16
    assert int(counter, 16) >= 0


@both_servers
@pytest.mark.parametrize(
    ("change", "reason", "field"),
    [
        ({"distance": None}, "NOT_NULLABLE", "distance"),
        ({"distance": "far"}, "WRONG_TYPE", "distance"),
        ({"carrier": 7}, "WRONG_TYPE", "carrier"),
        ({"stops": 1.5}, "WRONG_TYPE", "stops"),
        ({"departs": "yesterday"}, "WRONG_TYPE", "departs"),
        ({"flight_id": 12}, "WRONG_TYPE", "flight_id"),
        ({"carrier": ...}, "MISSING_FIELD", "carrier"),
    ],
)
def test_a_bad_row_is_refused_with_its_field(
    doors: Doors, change: dict[str, Any], reason: str, field: str
) -> None:
    bad = {name: value for name, value in {**ROW, **change}.items() if value is not ...}
    status, answer = doors.http("POST", "/v1/models/flights:predict", {"rows": [ROW, bad]})
    assert (status, answer["reason"], answer["field"], answer["row"]) == (422, reason, field, "1")
    with pytest.raises(grpc.RpcError) as caught:
        doors.native.Predict(native.PredictRequest(model="flights", rows=struct_rows([ROW, bad])))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    info = error_info(caught.value)
    assert (info.reason, info.domain, info.metadata["field"]) == (reason, "everloop", field)


@both_servers
@pytest.mark.parametrize("value", [1e300, -1e39])
def test_a_number_that_the_model_cannot_hold_is_refused(doors: Doors, value: float) -> None:
    bad = {**ROW, "distance": value}
    inputs = tensor("distance", data=[1.0, value])
    for path, body in (
        ("/v1/models/flights:predict", {"rows": [ROW, bad]}),
        ("/v2/models/flights/infer", {"inputs": inputs}),
    ):
        status, answer = doors.http("POST", path, body)
        found = (status, answer["reason"], answer["field"], answer["row"])
        assert found == (422, "OUT_OF_RANGE", "distance", "1"), path
    calls: list[tuple[Callable[[Any], Any], Any]] = [
        (doors.native.Predict, native.PredictRequest(model="flights", rows=struct_rows([bad]))),
    ]
    for raw in (False, True):
        request = infer_request([ROW], raw)
        if raw:
            request.raw_input_contents[1] = np.float64(value).tobytes()
        else:
            request.inputs[1].contents.fp64_contents[0] = value
        calls.append((doors.oip.ModelInfer, request))
    for call, request in calls:
        with pytest.raises(grpc.RpcError) as caught:
            call(request)
        info = error_info(caught.value)
        assert (info.reason, info.metadata["field"]) == ("OUT_OF_RANGE", "distance")


@both_servers
def test_a_row_with_a_field_that_the_pipeline_lacks_is_refused(world: Any) -> None:
    world.policies["flights"] = ServingPolicy(
        id_field="flight_id", fields=("flight_id", "carrier", "late")
    )
    world.publish(1)
    world.publish(1, name="stranger")
    doors = Doors(world)
    good, bad = {**ROW, "late": True}, {**ROW, "aeg": 3.0}
    path = "/v1/models/flights:predict"
    status, answer = doors.http("POST", path, {"rows": [good, bad]})
    found = (status, answer["reason"], answer["field"], answer["row"])
    assert found == (422, "UNKNOWN_FIELD", "aeg", "1")
    with pytest.raises(grpc.RpcError) as caught:
        doors.native.Predict(native.PredictRequest(model="flights", rows=struct_rows([bad])))
    info = error_info(caught.value)
    assert (info.reason, info.metadata["field"]) == ("UNKNOWN_FIELD", "aeg")
    # Fields of the schema that are no input, inputs that the schema has dropped, and a model without a pipeline.
    assert doors.http("POST", path, {"rows": [good]})[0] == 200
    assert doors.http("POST", "/v1/models/stranger:predict", {"rows": [bad]})[0] == 200
    doors.channel.close()


def error_info(error: grpc.RpcError) -> error_details_pb2.ErrorInfo:
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # it is a grpc.Call too
    assert status is not None
    (detail,) = status.details
    info = error_details_pb2.ErrorInfo()
    assert detail.Unpack(info)
    return info


def tensor(of: str, **changes: Any) -> list[dict[str, Any]]:
    return [{**item, **changes} if item["name"] == of else item for item in tensors([ROW, ROW])]


@pytest.mark.parametrize(
    ("inputs", "reason", "field"),
    [
        (
            [item for item in tensors([ROW]) if item["name"] != "distance"],
            "MISSING_FIELD",
            "distance",
        ),
        (tensor("distance", shape=[2, 2]), "WRONG_SHAPE", "distance"),
        (tensor("distance", shape=[3]), "WRONG_SHAPE", "distance"),
        (tensor("distance", shape=[1], data=[1.0]), "WRONG_SHAPE", "distance"),
        (tensor("distance", data=[1.0, None]), "NOT_NULLABLE", "distance"),
        (tensor("distance", data=["1", "2"]), "WRONG_TYPE", "distance"),
        (tensor("distance", datatype="BF16"), "WRONG_TYPE", "distance"),
        (tensor("stops", datatype="FP32", data=[0.5, 1.0]), "WRONG_TYPE", "stops"),
        (tensor("stops", datatype="INT8", data=[300, 1]), "OUT_OF_RANGE", "stops"),
        (tensor("weekend", datatype="INT8", data=[2, 1]), "WRONG_TYPE", "weekend"),
        (tensor("carrier", datatype="INT8", data=[2, 1]), "WRONG_TYPE", "carrier"),
        (tensor("departs", datatype="FP32", data=[2.0, 1.0]), "WRONG_TYPE", "departs"),
        (tensor("departs", datatype="BYTES", data=["x", "y"]), "WRONG_TYPE", "departs"),
        (tensor("age", name="unheard"), "UNKNOWN_FIELD", "unheard"),
        (tensors([ROW]) + tensors([ROW])[:1], "DUPLICATE_FIELD", None),
        ([], "NO_ROWS", None),
        ([{"name": "distance"}], "MALFORMED_REQUEST", None),
        (7, "MALFORMED_REQUEST", None),
    ],
)
def test_a_bad_tensor_is_refused_with_its_name(
    doors: Doors, inputs: Any, reason: str, field: str | None
) -> None:
    status, answer = doors.http("POST", "/v2/models/flights/infer", {"inputs": inputs})
    assert (status, answer["reason"], answer.get("field")) == (422, reason, field)


def test_raw_contents_that_do_not_fit_are_refused(doors: Doors) -> None:
    for index, raw, field in ((1, b"\0" * 7, "distance"), (0, b"\xff\0\0\0", "carrier")):
        request = infer_request([ROW], raw=True)
        request.raw_input_contents[index] = raw
        with pytest.raises(grpc.RpcError) as caught:
            doors.oip.ModelInfer(request)
        assert error_info(caught.value).metadata["field"] == field
    request = infer_request([ROW], raw=True)
    request.inputs[1].contents.fp64_contents.append(1.0)
    with pytest.raises(grpc.RpcError) as caught:
        doors.oip.ModelInfer(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    del request.raw_input_contents[0]
    with pytest.raises(grpc.RpcError) as caught:
        doors.oip.ModelInfer(request)
    assert error_info(caught.value).reason == "MALFORMED_REQUEST"


def test_timestamps_may_be_texts_and_a_record_id_may_come_along(doors: Doors) -> None:
    inputs = [item for item in tensors([ROW]) if item["name"] not in ("departs", "age")]
    inputs.append({"name": "departs", "datatype": "BYTES", "shape": [1], "data": [ROW["departs"]]})
    inputs.append({"name": "flight_id", "datatype": "BYTES", "shape": [1], "data": ["f-9"]})
    request = {"id": "x", "inputs": inputs, "outputs": [{"name": "label"}]}
    status, answer = doors.http("POST", "/v2/models/flights/versions/1/infer", request)
    assert status == 200, answer
    assert (answer["id"], answer["model_version"]) == ("x", "1")
    assert [item["name"] for item in answer["outputs"]] == ["label"]


def test_a_request_for_an_output_that_there_is_not_does_not_run(doors: Doors) -> None:
    request: dict[str, Any] = {"inputs": tensors([ROW]), "outputs": [{"name": "nonsense"}]}
    status, answer = doors.http("POST", "/v2/models/flights/infer", request)
    assert (status, answer["reason"]) == (422, "UNKNOWN_OUTPUT")
    by_grpc = infer_request([ROW], raw=True)
    by_grpc.outputs.add(name="nonsense")
    with pytest.raises(grpc.RpcError) as caught:
        doors.oip.ModelInfer(by_grpc)
    assert error_info(caught.value).reason == "UNKNOWN_OUTPUT"
    request["outputs"] = [{"name": []}]
    status, answer = doors.http("POST", "/v2/models/flights/infer", request)
    assert (status, answer["reason"]) == (422, "MALFORMED_REQUEST")
    assert doors.replica.log.books.counts("flights").served == 0


def test_a_record_id_that_is_no_text_is_refused_and_null_is_none(doors: Doors) -> None:
    path = "/v1/models/flights:predict"
    wrong: list[object] = [0, False, [], 1]
    for given_id in wrong:
        rows = [{**ROW, "flight_id": given_id}]
        status, answer = doors.http("POST", path, {"rows": rows})
        assert (status, answer["reason"], answer["field"]) == (422, "WRONG_TYPE", "flight_id")
    assert doors.http("POST", path, {"rows": [{**ROW, "flight_id": None}]})[0] == 200


@both_servers
def test_what_is_not_there_is_not_found(doors: Doors) -> None:
    for method, path, reason in (
        ("POST", "/v1/models/ghost:predict", "MODEL_NOT_FOUND"),
        ("GET", "/v1/models/ghost", "MODEL_NOT_FOUND"),
        ("GET", "/v2/models/ghost/ready", "MODEL_NOT_FOUND"),
        ("GET", "/v2/models/flights/versions/9", "VERSION_NOT_FOUND"),
        ("GET", "/v3", "PATH_NOT_FOUND"),
        ("POST", "/v2/nothing", "PATH_NOT_FOUND"),
    ):
        body = {"rows": [ROW]} if method == "POST" else None
        status, answer = doors.http(method, path, body)
        assert (status, answer["reason"]) == (404, reason), path
    calls: list[tuple[Callable[[Any], Any], Any]] = [
        (doors.oip.ModelInfer, oip.ModelInferRequest(model_name="ghost")),
        (doors.oip.ModelReady, oip.ModelReadyRequest(name="flights", version="9")),
        (doors.oip.ModelMetadata, oip.ModelMetadataRequest(name="ghost")),
        (doors.native.GetModel, native.GetModelRequest(model="ghost")),
        (doors.native.Predict, native.PredictRequest(model="ghost")),
    ]
    for call, request in calls:
        with pytest.raises(grpc.RpcError) as caught:
            call(request)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_malformed_large_and_empty_requests_are_refused(doors: Doors) -> None:
    path = "/v1/models/flights:predict"
    for body, status, reason in (
        (b"{", 422, "MALFORMED_REQUEST"),
        (b"[]", 422, "MALFORMED_REQUEST"),
        (b'{"rows": 1}', 422, "MALFORMED_REQUEST"),
        (b'{"rows": [1]}', 422, "MALFORMED_REQUEST"),
        (b'{"rows": []}', 422, "NO_ROWS"),
        (json.dumps({"rows": [ROW] * 101}).encode(), 422, "TOO_MANY_ROWS"),
        (b" " * 200_001, 413, "REQUEST_TOO_LARGE"),
    ):
        found = doors.http("POST", path, body)
        assert (found[0], found[1]["reason"]) == (status, reason)
    assert doors.http("PUT", path, b"{}")[0] == 405
    # The server is as well as before.
    assert doors.http("POST", path, {"rows": [ROW]})[0] == 200


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ([{"name": "age", "datatype": "FP32", "shape": [1]}], "tensor 'age': 'data' is missing"),
        ([{"name": "age", "data": [1.0], "shape": [1]}], "'datatype' is missing"),
        (7, "'inputs' and 'outputs' are lists of objects"),
        ([7], "'inputs' and 'outputs' are lists of objects"),
    ],
)
def test_a_request_of_another_shape_is_told_what_it_lacks(
    doors: Doors, inputs: object, said: str
) -> None:
    status, answer = doors.http("POST", "/v2/models/flights/infer", {"inputs": inputs})
    assert (status, answer["reason"]) == (422, "MALFORMED_REQUEST")
    assert said in answer["error"]
    assert "Error(" not in answer["error"]


def test_head_is_answered_like_get_without_the_body(doors: Doors) -> None:
    for path, status in (("/v1/models", 200), ("/v2/health/live", 200), ("/nothing", 404)):
        seen = []
        for method in ("GET", "HEAD"):
            with contextlib.closing(
                http.client.HTTPConnection(doors.world.settings.http_address, timeout=10)
            ) as connection:
                connection.request(method, path)
                answer = connection.getresponse()
                seen.append((answer.status, answer.getheaders()))
                assert (answer.read() == b"") is (method == "HEAD")
        assert seen[0] == seen[1]
        assert seen[0][0] == status


def test_another_method_is_told_the_one_to_use(doors: Doors) -> None:
    for method, path, allowed in (
        ("GET", "/v1/models/flights:predict", "POST"),
        ("GET", "/v1/models/flights:explain", "POST"),
        ("GET", "/v2/models/flights/infer", "POST"),
        ("GET", "/v2/models/flights/versions/1/infer", "POST"),
        ("PUT", "/v1/models/flights:predict", "POST"),
        ("PUT", "/v1/models", "GET"),
    ):
        with contextlib.closing(
            http.client.HTTPConnection(doors.world.settings.http_address, timeout=10)
        ) as connection:
            connection.request(method, path)
            answer = connection.getresponse()
            found = json.loads(answer.read())["reason"]
        assert (answer.status, found, answer.headers["allow"]) == (
            405,
            "METHOD_NOT_ALLOWED",
            allowed,
        ), path


@both_servers
def test_an_unforeseen_error_is_internal_and_says_nothing(
    doors: Doors, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyError("secret")

    monkeypatch.setattr(doors.replica.predictor, "rows", fail)
    status, answer = doors.http("POST", "/v1/models/flights:predict", {"rows": [ROW]})
    assert (status, answer["reason"]) == (500, "INTERNAL")
    assert "secret" not in json.dumps(answer)
    with pytest.raises(grpc.RpcError) as caught:
        doors.native.Predict(native.PredictRequest(model="flights", rows=struct_rows([ROW])))
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in str(caught.value)


@both_servers
def test_metadata_health_and_reflection(doors: Doors) -> None:
    assert doors.http("GET", "/v2/health/live") == (200, {"live": True})
    assert doors.http("GET", "/v2/health/ready") == (200, {"ready": True})
    assert doors.http("GET", "/v2")[1]["fingerprint"] == "mark"
    described = doors.http("GET", "/v2/models/flights")[1]
    assert described["versions"] == ["1"]
    assert described["inputs"][0] == {"name": "carrier", "datatype": "BYTES", "shape": [-1, 1]}
    assert {item["name"] for item in described["outputs"]} == {
        "probabilities",
        "label",
        "prediction_id",
    }
    assert doors.http("GET", "/v2/models/flights/ready")[1]["ready"] is True
    model = doors.http("GET", "/v1/models/flights")[1]
    assert (model["version"], model["classes"]) == (1, ["false", "true"])

    assert doors.oip.ServerLive(oip.ServerLiveRequest()).live
    assert doors.oip.ServerReady(oip.ServerReadyRequest()).ready
    assert doors.oip.ModelReady(oip.ModelReadyRequest(name="flights", version="1")).ready
    assert doors.oip.ServerMetadata(oip.ServerMetadataRequest()).name == "everloop-inference"
    metadata = doors.oip.ModelMetadata(oip.ModelMetadataRequest(name="flights"))
    assert [item.name for item in metadata.inputs] == [spec.name for spec in INPUTS]
    served = doors.native.GetModel(native.GetModelRequest(model="flights")).model
    assert (served.version, served.onnx_sha256) == (1, sample_artifact(0.1).sha256)

    health: Any = health_pb2_grpc.HealthStub(doors.channel)
    for name in ("", "inference.GRPCInferenceService", "everloop.inference.v1.InferenceService"):
        answer = health.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    reflection: Any = reflection_pb2_grpc
    stub = reflection.ServerReflectionStub(doors.channel)
    (listed,) = stub.ServerReflectionInfo(iter([asked]))
    names = {item.name for item in listed.list_services_response.service}
    assert "inference.GRPCInferenceService" in names


def test_regression_and_multiclass_answer_in_their_own_shapes(world: Any) -> None:
    world.publish(1, sample_artifact(task="regression"), name="delay")
    world.publish(1, sample_artifact(task="multiclass"), name="kind")
    doors = Doors(world)
    _, answer = doors.http("POST", "/v1/models/delay:predict", {"rows": [ROW]})
    (prediction,) = answer["predictions"]
    assert (prediction["label"], prediction["probabilities"]) == ("", [])
    _, tensors_answer = doors.http("POST", "/v2/models/delay/infer", {"inputs": tensors([ROW])})
    assert [item["name"] for item in tensors_answer["outputs"]] == ["score", "prediction_id"]
    assert tensors_answer["outputs"][0]["data"] == [prediction["score"]]
    _, answer = doors.http("POST", "/v1/models/kind:predict", {"rows": [ROW]})
    (prediction,) = answer["predictions"]
    best = int(np.argmax(prediction["probabilities"]))
    assert prediction["label"] == ["a", "b", "c"][best]
    assert prediction["score"] == prediction["probabilities"][best] > 0
    (answered,) = doors.native.Predict(
        native.PredictRequest(model="kind", rows=struct_rows([ROW]))
    ).predictions
    assert answered.score == answered.probabilities[best]
    doors.channel.close()


def test_metrics_are_exposed(doors: Doors) -> None:
    doors.http("POST", "/v1/models/flights:predict", {"rows": [ROW] * 3})
    doors.http("POST", "/v1/models/ghost:predict", {"rows": [ROW]})
    host, _, port = doors.world.settings.predict_grpc_address.rpartition(":")
    with socket.create_connection((host, int(port))) as garbage:
        garbage.sendall(b"GET / HTTP/1.1\r\nHost: somebody who takes it for a web server\r\n\r\n")
        while garbage.recv(4096):
            pass
    with contextlib.closing(
        http.client.HTTPConnection(doors.world.settings.http_address)
    ) as connection:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    for line in (
        'everloop_inference_requests_total{door="http",model="flights"}',
        'everloop_inference_rows_total{model="flights"}',
        'everloop_inference_errors_total{door="http",reason="MODEL_NOT_FOUND"}',
        'everloop_inference_duration_seconds_bucket{door="http",le="0.001"}',
        'everloop_inference_grpc_closed_connections_total{reason="preface"}',
        'everloop_inference_served_version{model="flights"} 1.0',
        'everloop_inference_log_served_rows_total{model="flights"} 3.0',
    ):
        assert line in text, line


class Gate:
    """An engine that holds its runs until it is let go."""

    kind = EngineKind.MLFLOW

    def __init__(self, inner: Engine) -> None:
        self.go, self.runs = threading.Event(), 0
        self._inner = inner

    def run(self, feeds: Feeds) -> Any:
        self.runs += 1
        assert self.go.wait(10)
        return self._inner.run(feeds)


@pytest.mark.parametrize("door", ["http", "grpc"])
def test_a_caller_who_hangs_up_while_waiting_is_dropped(
    doors: Doors, until: Callable[..., None], door: str
) -> None:
    models = doors.replica.models
    gate = Gate(models.get("flights").engine)
    models.swap(dataclasses.replace(models.get("flights"), engine=gate))
    waiting = doors.replica.predictor.batcher
    gone = DROPPED.labels("flights", "gone")._value
    before = gone.get()
    request = native.PredictRequest(model="flights", rows=struct_rows([ROW]))
    first = doors.native.Predict.future(request)
    until(lambda: gate.runs == 1)
    if door == "grpc":
        second = doors.native.Predict.future(request)
        until(lambda: waiting.waiting == 1)
        second.cancel()
    else:
        connection = http.client.HTTPConnection(doors.world.settings.http_address)
        connection.request("POST", "/v1/models/flights:predict", json.dumps({"rows": [ROW]}))
        until(lambda: waiting.waiting == 1)
        connection.close()
    third = doors.native.Predict.future(request)
    until(lambda: waiting.waiting == 2)
    until(lambda: any(job.answer.cancelled() for job in jobs_of(waiting)))
    gate.go.set()
    assert len(first.result(10).predictions) == len(third.result(10).predictions) == 1
    until(lambda: gone.get() == before + 1)
    assert gate.runs == 2


def jobs_of(batcher: Batcher) -> list[Any]:
    return [job for queue in batcher._queues.values() for job in tuple(queue.jobs)]
