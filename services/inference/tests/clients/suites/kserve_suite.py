"""KServe's Python client, over REST and over gRPC."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pandas as pd
import pytest
from kserve import (
    InferenceGRPCClient,
    InferenceRESTClient,
    InferInput,
    InferRequest,
    RESTConfig,
)
from kserve.protocol.infer_type import RequestedOutput

FACTS = json.loads(Path(os.environ["EVERLOOP_FACTS"]).read_text())
EXPECTED = np.array(FACTS["probabilities"], np.float32)
DATATYPES = {
    "carrier": ("BYTES", np.object_),
    "distance": ("FP64", np.float64),
    "age": ("FP32", np.float32),
    "stops": ("INT32", np.int32),
    "weekend": ("BOOL", np.bool_),
    "departs": ("INT64", np.int64),
}
URL = f"http://{FACTS['http']}"


def inputs(binary: bool, distance: str = "FP64") -> list[InferInput]:
    made = []
    for name, (datatype, dtype) in DATATYPES.items():
        values = np.array(FACTS["columns"][name], dtype)
        if name == "distance":
            datatype, values = distance, values.astype({"FP64": "f8", "FP16": "f2"}[distance])
        item = InferInput(name, list(values.shape), datatype)
        item.set_data_from_numpy(values, binary_data=binary)
        made.append(item)
    return made


def request(binary: bool, **options: Any) -> InferRequest:
    return InferRequest("flights", inputs(binary), request_id="call-7", **options)


def over_rest(ask: Callable[[InferenceRESTClient], Any], protocol: str = "v2") -> Any:
    async def asking() -> Any:
        async with InferenceRESTClient(RESTConfig(protocol=protocol)) as client:
            return await ask(client)

    return asyncio.run(asking())


def over_grpc(ask: Callable[[InferenceGRPCClient], Any]) -> Any:
    async def asking() -> Any:
        async with InferenceGRPCClient(FACTS["grpc"]) as client:
            return await ask(client)

    return asyncio.run(asking())


def check(response: Any) -> None:
    assert (response.id, response.model_name) == ("call-7", "flights")
    found = {item.name: item for item in response.outputs}
    probabilities = found["probabilities"].as_numpy().reshape(EXPECTED.shape)
    np.testing.assert_allclose(probabilities, EXPECTED, atol=1e-6)
    labels = found["label"].as_numpy().ravel().tolist()
    texts = [item.decode() if isinstance(item, bytes) else item for item in labels]
    assert texts == FACTS["labels"]


@pytest.mark.parametrize("binary", [False, True])
def test_infer_over_rest(binary: bool) -> None:
    check(over_rest(lambda client: client.infer(URL, request(binary), model_name="flights")))


def test_outputs_in_binary_where_the_request_says_so() -> None:
    headers: dict[str, str] = {}
    asked = request(True, parameters={"binary_data_output": True})
    check(
        over_rest(
            lambda client: client.infer(URL, asked, model_name="flights", response_headers=headers)
        )
    )
    assert headers["content-type"] == "application/octet-stream"
    wanted = [RequestedOutput("probabilities", {"binary_data": True}), RequestedOutput("label")]
    asked = request(False, request_outputs=wanted)
    response = over_rest(lambda client: client.infer(URL, asked, model_name="flights"))
    check(response)
    assert [item.name for item in response.outputs] == ["probabilities", "label"]


def test_half_floats_go_in_binary() -> None:
    asked = InferRequest("flights", inputs(True, distance="FP16"), request_id="call-7")
    check(over_rest(lambda client: client.infer(URL, asked, model_name="flights")))


def test_a_plain_document() -> None:
    document = {
        "id": "call-7",
        "inputs": [
            {
                "name": name,
                "datatype": datatype,
                "shape": [len(EXPECTED), 1],
                "data": [[value] for value in np.array(FACTS["columns"][name], dtype).tolist()],
            }
            for name, (datatype, dtype) in DATATYPES.items()
        ],
    }
    check(over_rest(lambda client: client.infer(URL, document, model_name="flights")))


def test_health_over_rest() -> None:
    assert over_rest(lambda client: client.is_server_live(URL))
    assert over_rest(lambda client: client.is_server_ready(URL))
    assert over_rest(lambda client: client.is_model_ready(URL, "flights"))
    assert not over_rest(lambda client: client.is_model_ready(URL, "ghost"))


def test_errors_over_rest_have_their_text() -> None:
    with pytest.raises(httpx.HTTPStatusError, match="no model 'ghost' is served here"):
        over_rest(lambda client: client.infer(URL, request(False), model_name="ghost"))
    asked = InferRequest("flights", inputs(False)[1:])
    with pytest.raises(httpx.HTTPStatusError, match="the tensor is missing"):
        over_rest(lambda client: client.infer(URL, asked, model_name="flights"))


def test_the_native_rows_through_the_client_s_other_protocol() -> None:
    answer = over_rest(
        lambda client: client.infer(URL, {"rows": FACTS["rows"]}, model_name="flights"),
        protocol="v1",
    )
    found = [item["probabilities"] for item in answer["predictions"]]
    np.testing.assert_allclose(found, EXPECTED, atol=1e-6)
    explained = over_rest(
        lambda client: client.explain(URL, "flights", {"rows": FACTS["rows"][:1]}), protocol="v1"
    )
    (explanation,) = explained["explanations"]
    total = explanation["base_score"] + sum(item["value"] for item in explanation["attributions"])
    assert total == pytest.approx(explanation["score"], abs=1e-6)


@pytest.mark.parametrize("binary", [False, True])
def test_infer_over_grpc(binary: bool) -> None:
    response = over_grpc(lambda client: client.infer(request(binary)))
    check(response)
    assert response.model_version == "1"


def test_parameters_over_grpc() -> None:
    asked = request(False, parameters={"mine": "x", "flag": True, "number": 3})
    check(over_grpc(lambda client: client.infer(asked)))


def test_health_over_grpc() -> None:
    assert over_grpc(lambda client: client.is_server_live())
    assert over_grpc(lambda client: client.is_server_ready())
    assert over_grpc(lambda client: client.is_model_ready("flights"))
    with pytest.raises(grpc.RpcError) as caught:
        over_grpc(lambda client: client.is_model_ready("ghost"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_errors_over_grpc_have_their_code() -> None:
    with pytest.raises(grpc.RpcError) as caught:
        over_grpc(lambda client: client.infer(InferRequest("flights", inputs(False)[1:])))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_columns_of_a_data_frame_as_lists() -> None:
    frame = pd.DataFrame(
        {name: np.array(FACTS["columns"][name], dtype) for name, (_, dtype) in DATATYPES.items()}
    )
    made = [
        InferInput(name, [len(frame)], DATATYPES[name][0], data=frame[name].tolist())
        for name in frame
    ]
    asked = InferRequest("flights", made, request_id="call-7")
    response = over_rest(lambda client: client.infer(URL, asked, model_name="flights"))
    check(response)
