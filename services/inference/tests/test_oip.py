"""The Open Inference Protocol to its letter: data types, binary data, parameters, encodings, and what is refused."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import orjson
import pytest
from google.rpc import error_details_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from everloop_contracts.stubs.inference import grpc_service_pb2 as oip
from everloop_features.inputs import feeds_from_rows
from everloop_inference.adapters.engines import LocalEngines
from everloop_inference.domain import ServingPolicy, Wanted
from everloop_inference.fakes import (
    INPUTS,
    ROW,
    Caller,
    MemoryArtifacts,
    request,
    sample_artifact,
    told,
)
from everloop_inference.http.app import HttpApp
from everloop_inference.models.load import Loader
from everloop_inference.models.swap import Models
from everloop_inference.predict import Predictor
from everloop_inference.protocols import oip_json, oip_proto
from everloop_inference.protocols.tensors import raw_values
from everloop_inference.rpc import Abort
from everloop_inference.servicer import OipServicer

EXACT = {**ROW, "distance": 96.0, "stops": 2, "age": 4.0}
TYPED = {
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "INT64": "int64_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
NUMPY = {
    **{f"{kind.upper()}{bits}": f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16)},
    **{f"{kind.upper()}{bits}": f"{kind}{bits}" for kind in ("int", "uint") for bits in (32, 64)},
    **{f"FP{bits}": f"float{bits}" for bits in (16, 32, 64)},
}


class Silent:
    def offer(self, *_: object) -> None:
        pass


class Server:
    def __init__(self, folder: Path) -> None:
        artifacts, models = MemoryArtifacts(), Models()
        artifact = sample_artifact(0.2)
        artifacts.runs["run"] = artifact
        loader = Loader(artifacts, LocalEngines(), folder / "cache")
        self.model = models.swap(
            loader.load(Wanted("flights", 1, "run", artifact.sha256), ServingPolicy("flight_id"))
        )
        predictor = Predictor(models, Silent(), "epoch")
        self.app = HttpApp(predictor, "mark", 100_000)
        self.servicer = OipServicer(predictor, lambda: True)
        self.expected = self.model.run(feeds_from_rows([EXACT], INPUTS))

    def http(
        self, body: bytes, path: str = "/v2/models/flights/infer", **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        return asyncio.run(request(self.app, "POST", path, body, **headers))

    def refusal(self, body: bytes, **headers: str) -> tuple[int, str]:
        status, _, content = self.http(body, **headers)
        answer = orjson.loads(content)
        assert isinstance(answer["error"], str)
        return status, answer["reason"]

    def infer(self, asked: oip.ModelInferRequest) -> oip.ModelInferResponse:
        async def asking() -> oip.ModelInferResponse:
            answer: oip.ModelInferResponse = await self.servicer.ModelInfer(asked, Caller())
            return answer

        return asyncio.run(asking())

    def infer_refusal(self, asked: oip.ModelInferRequest) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(Abort) as refusal:
            self.infer(asked)
        info = error_details_pb2.ErrorInfo()
        assert told(refusal.value).details[0].Unpack(info)
        return refusal.value.code, info.reason


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Server:
    return Server(tmp_path_factory.mktemp("oip"))


def tensors(**datatypes: str) -> list[dict[str, Any]]:
    kinds = {"carrier": "BYTES", "distance": "FP64", "stops": "INT64", "departs": "BYTES"}
    kinds |= {"age": "FP32", "weekend": "BOOL", **datatypes}
    return [
        {"name": name, "datatype": datatype, "shape": [1], "data": [EXACT[name]]}
        for name, datatype in kinds.items()
    ]


def raw(datatype: str, value: Any) -> bytes:
    if datatype == "BYTES":
        return raw_values([value])
    if datatype == "BF16":
        return (np.array([value], "<f4").view("<u4") >> 16).astype("<u2").tobytes()
    return np.array([value], NUMPY.get(datatype, "bool")).tobytes()


def binary(
    inputs: list[dict[str, Any]], **options: Any
) -> tuple[bytes, dict[str, str], dict[str, Any]]:
    """A body with every tensor behind the JSON, its headers, and the JSON."""
    contents = [raw(item["datatype"], item["data"][0]) for item in inputs]
    document = {
        "inputs": [
            {
                **{key: value for key, value in item.items() if key != "data"},
                "parameters": {"binary_data_size": len(content)},
            }
            for item, content in zip(inputs, contents, strict=True)
        ],
        **options,
    }
    head = orjson.dumps(document)
    headers = {"inference_header_content_length": str(len(head))}
    return b"".join((head, *contents)), headers, document


def message(inputs: list[dict[str, Any]], is_raw: bool) -> oip.ModelInferRequest:
    asked = oip.ModelInferRequest(model_name="flights")
    for item in inputs:
        datatype, (value,) = item["datatype"], item["data"]
        added = asked.inputs.add(name=item["name"], datatype=datatype, shape=item["shape"])
        if is_raw:
            asked.raw_input_contents.append(raw(datatype, value))
        elif datatype == "BYTES":
            added.contents.bytes_contents.append(value.encode())
        elif datatype == "BOOL":
            added.contents.bool_contents.append(value)
        else:
            kind = int if "INT" in datatype else float
            getattr(added.contents, TYPED[datatype]).append(kind(value))
    return asked


def found(server: Server, content: bytes) -> None:
    answer = orjson.loads(content)
    (output,) = (item for item in answer["outputs"] if item["name"] == "probabilities")
    np.testing.assert_allclose(np.reshape(output["data"], (1, 2)), server.expected, atol=1e-7)


@pytest.mark.parametrize("datatype", [*NUMPY, "BF16"])
def test_every_data_type_of_numbers_in_every_way(server: Server, datatype: str) -> None:
    names = ("distance", "stops", "age")
    inputs = tensors(**dict.fromkeys(names, datatype))
    body, headers, _ = binary(inputs)
    status, _, content = server.http(body, **headers)
    assert status == 200, content
    found(server, content)
    raw_answer = server.infer(message(inputs, is_raw=True))
    np.testing.assert_allclose(
        np.frombuffer(raw_answer.raw_output_contents[0], np.float32),
        server.expected[0],
        atol=1e-7,
    )
    if datatype in TYPED:
        typed = server.infer(message(inputs, is_raw=False))
        contents = typed.outputs[0].contents.fp32_contents
        np.testing.assert_allclose(contents, server.expected[0], atol=1e-7)
        assert not typed.raw_output_contents
    document = [
        {**item, "data": [int(EXACT[item["name"]])]}
        if item["name"] in names and "INT" in datatype
        else item
        for item in inputs
    ]
    status, _, content = server.http(orjson.dumps({"inputs": document}))
    if datatype == "BF16":
        assert (status, orjson.loads(content)["reason"]) == (422, "WRONG_TYPE")
    else:
        found(server, content)


@pytest.mark.parametrize("datatype", ["FP16", "BF16", "COMPLEX", ""])
def test_types_that_have_no_typed_contents_are_refused_there(server: Server, datatype: str) -> None:
    asked = message(tensors(), is_raw=False)
    asked.inputs[1].datatype = datatype
    assert server.infer_refusal(asked) == (grpc.StatusCode.INVALID_ARGUMENT, "WRONG_TYPE")


def test_outputs_in_binary_as_the_request_or_each_output_wants(server: Server) -> None:
    wanted = [
        {"name": "label", "parameters": {"binary_data": False}},
        {"name": "probabilities"},
        {"name": "prediction_id"},
    ]
    body, headers, _ = binary(
        tensors(), id="7", parameters={"binary_data_output": True}, outputs=wanted
    )
    status, answered, content = server.http(body, **headers)
    assert (status, answered["content-type"]) == (200, "application/octet-stream")
    end = int(answered["inference-header-content-length"])
    document = orjson.loads(content[:end])
    assert document["id"] == "7"
    label, probabilities, prediction = document["outputs"]
    assert label["data"] in (["true"], ["false"])
    assert "data" not in probabilities
    sizes = [item["parameters"]["binary_data_size"] for item in (probabilities, prediction)]
    assert end + sum(sizes) == len(content)
    values = np.frombuffer(content[end : end + sizes[0]], np.float32).reshape(1, 2)
    np.testing.assert_allclose(values, server.expected, atol=1e-7)
    assert content[end + sizes[0] :][4:].decode().startswith("epoch-")
    # Without anything in binary it is plain JSON.
    _, answered, content = server.http(orjson.dumps({"inputs": tensors()}))
    assert answered["content-type"] == "application/json"
    found(server, content)


def test_binary_data_that_does_not_fit_is_refused(server: Server) -> None:
    body, headers, document = binary(tensors())
    for length in ("x", "-1", str(len(body) + 1), "1.5"):
        assert server.refusal(body, inference_header_content_length=length) == (
            422,
            "MALFORMED_REQUEST",
        )
    for broken, reason in (
        (body + b"\0", "MALFORMED_REQUEST"),
        (body[:-1], "WRONG_SHAPE"),
        (body[: int(headers["inference_header_content_length"])], "WRONG_SHAPE"),
    ):
        assert server.refusal(broken, **headers) == (422, reason)
    for size in (-1, "8", 1.5, True):
        document["inputs"][0]["parameters"]["binary_data_size"] = size
        head = orjson.dumps(document)
        assert server.refusal(head, inference_header_content_length=str(len(head))) == (
            422,
            "MALFORMED_REQUEST",
        )
    both = tensors()
    both[0]["parameters"] = {"binary_data_size": 4}
    assert server.refusal(orjson.dumps({"inputs": both})) == (422, "MALFORMED_REQUEST")
    odd = tensors()
    odd[0]["parameters"] = 7
    assert server.refusal(orjson.dumps({"inputs": odd})) == (422, "MALFORMED_REQUEST")
    asked = message(tensors(), is_raw=True)
    asked.raw_input_contents[5] = b"\2"
    assert server.infer_refusal(asked) == (grpc.StatusCode.INVALID_ARGUMENT, "WRONG_TYPE")


def test_parameters_are_accepted_unless_they_change_the_meaning(server: Server) -> None:
    mine = {"mine": "x", "number": 3, "share": 0.5, "flag": True}
    inputs = [{**item, "parameters": mine} for item in tensors()]
    outputs = [{"name": "probabilities", "parameters": mine}]
    body = {"inputs": inputs, "outputs": outputs, "parameters": mine}
    status, _, content = server.http(orjson.dumps(body))
    assert status == 200
    found(server, content)
    asked = message(tensors(), is_raw=True)
    for holder in (asked, asked.inputs[0], asked.outputs.add(name="probabilities")):
        parameters: Any = holder.parameters
        parameters["mine"].string_param = "x"
        parameters["number"].int64_param = 3
        parameters["share"].double_param = 0.5
    assert len(server.infer(asked).outputs) == 1
    for parameter in ("shared_memory_region", "classification"):
        changed = [{**tensors()[0], "parameters": {parameter: 1}}, *tensors()[1:]]
        refused = (422, "UNSUPPORTED_PARAMETER")
        assert server.refusal(orjson.dumps({"inputs": changed})) == refused
        changed = [{"name": "probabilities", "parameters": {parameter: 1}}]
        body = {"inputs": tensors(), "outputs": changed}
        assert server.refusal(orjson.dumps(body)) == refused
        for is_raw in (False, True):
            asked = message(tensors(), is_raw)
            asked.inputs[0].parameters[parameter].int64_param = 1
            code = grpc.StatusCode.INVALID_ARGUMENT
            assert server.infer_refusal(asked) == (code, "UNSUPPORTED_PARAMETER")


def test_contents_that_are_there_and_empty_are_no_contents(server: Server) -> None:
    asked = message(tensors(), is_raw=True)
    asked.inputs[0].contents.SetInParent()
    assert server.infer(asked).raw_output_contents
    asked.inputs[0].contents.bytes_contents.append(b"AA")
    assert server.infer_refusal(asked)[1] == "MALFORMED_REQUEST"


VALUES = {
    "BYTES": st.sampled_from(["AA", "zürich", "", "2013-07-01T10:30:00Z", "nonsense"]),
    "BOOL": st.booleans(),
    "INT32": st.integers(-2, 5),
    "INT64": st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(-2, 5),
    "UINT32": st.integers(0, 5),
    "UINT64": st.integers(0, (1 << 64) - 1),
    "FP32": st.floats(width=32) | st.sampled_from([0.0, 1.0, 0.5, 1400]),
    "FP64": st.floats() | st.sampled_from([0.0, 1.0, 0.5, 1400]),
    "FP16": st.sampled_from([0.0, 1.0]),
}
USUAL = {item["name"]: item for item in tensors()}


@st.composite
def single_rows(draw: st.DrawFn) -> list[dict[str, Any]]:
    """One row, mostly as it should be, with some tensors missing, odd, null, nested, unknown or twice."""
    row = []
    for name, usual in USUAL.items():
        fate = draw(st.sampled_from(["usual"] * 6 + ["odd", "absent", "null", "nested"]))
        item = dict(usual)
        if fate == "odd":
            item["datatype"] = draw(st.sampled_from(list(VALUES)))
            item["data"] = [draw(VALUES[item["datatype"]])]
        elif fate == "null":
            item["data"] = [None]
        elif fate == "nested":
            item |= {"shape": [1, 1], "data": [item["data"]]}
        if fate != "absent":
            row.append(item)
        assert name == item["name"]
    row += draw(st.sampled_from([[], [], [], [], [{**USUAL["age"], "name": "more"}], row[:1]]))
    record = {"name": "flight_id", "datatype": "BYTES", "shape": [1], "data": ["f-9"]}
    return row + draw(
        st.sampled_from([[], [record], [{**record, "datatype": "INT64", "data": [9]}]])
    )


@settings(max_examples=150)
@given(row=single_rows())
def test_the_short_way_for_a_single_row_says_what_the_long_way_says(
    server: Server, row: list[dict[str, Any]]
) -> None:
    """Over JSON, raw and typed: the same answer, or the same refusal."""

    def everywhere() -> list[Any]:
        found: list[Any] = []
        status, _, content = server.http(orjson.dumps({"inputs": row}))
        answer = orjson.loads(content)
        found.append((status, answer.get("reason"), answer.get("field")))
        if status == 200:
            found.append(answer["outputs"][0]["data"])
        flat = [{**item, "data": list(np.ravel(item["data"]).tolist())} for item in row]
        sendable = [item for item in flat if item["data"] != [None]]
        for is_raw in (True, False):
            if not is_raw and any(item["datatype"] == "FP16" for item in sendable):
                continue
            asked = message(sendable, is_raw)
            try:
                response = server.infer(asked)
            except Abort as error:
                found.append(told(error).message)
                continue
            values = (
                np.frombuffer(response.raw_output_contents[0], np.float32)
                if is_raw
                else response.outputs[0].contents.fp32_contents
            )
            found.append(list(values))
        return found

    short = everywhere()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(oip_json, "quick", lambda *_: None)
        patch.setattr(oip_proto, "quick", lambda *_: None)
        long = everywhere()
    np.testing.assert_equal(short, long)


def test_a_usual_single_row_goes_the_short_way(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("that was the long way")

    monkeypatch.setattr(oip_json, "tensors", refuse)
    monkeypatch.setattr(oip_proto, "tensors", refuse)
    seconds = {"name": "departs", "datatype": "INT64", "shape": [1], "data": [1372674600]}
    others = [item for item in tensors() if item["name"] != "departs"]
    for usual in (tensors(), [*others, seconds], [{**item, "shape": [1, 1]} for item in tensors()]):
        status, _, content = server.http(orjson.dumps({"inputs": usual}))
        assert status == 200, content
        for is_raw in (True, False):
            assert server.infer(message(usual, is_raw)).outputs


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "identity"])
def test_compressed_bodies(server: Server, encoding: str) -> None:
    body = orjson.dumps({"inputs": tensors()})
    packers: dict[str, Callable[[bytes], bytes]] = {
        "gzip": gzip.compress,
        "deflate": zlib.compress,
        "identity": bytes,
    }
    packed = packers[encoding](body)
    status, _, content = server.http(packed, content_encoding=encoding)
    assert status == 200
    found(server, content)


def test_bodies_that_cannot_be_decompressed_or_are_bombs_are_refused(server: Server) -> None:
    body = gzip.compress(orjson.dumps({"inputs": tensors()}))
    for broken in (b"nonsense", body[:-10], b""):
        assert server.refusal(broken, content_encoding="gzip") == (422, "MALFORMED_REQUEST")
    assert server.refusal(body, content_encoding="br") == (422, "UNSUPPORTED_ENCODING")
    bomb = gzip.compress(b" " * 10_000_000)
    assert len(bomb) < 100_000
    assert server.refusal(bomb, content_encoding="gzip") == (413, "REQUEST_TOO_LARGE")


def test_the_index_and_the_list_of_models(server: Server) -> None:
    listed = {"name": "flights", "version": "1", "state": "READY", "reason": ""}
    status, _, content = server.http(b'{"ready": true}', path="/v2/repository/index")
    assert (status, orjson.loads(content)) == (200, [listed])

    async def asking() -> tuple[oip.RepositoryIndexResponse, bytes]:
        index = await server.servicer.RepositoryIndex(oip.RepositoryIndexRequest(), Caller())
        _, _, names = await request(server.app, "GET", "/v2/models")
        return index, names

    index, names = asyncio.run(asking())
    assert [(item.name, item.version, item.state) for item in index.models] == [
        ("flights", "1", "READY")
    ]
    assert orjson.loads(names) == {"models": ["flights"]}
