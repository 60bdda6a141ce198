"""MLServer's own types, codecs, stubs and batch command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pandas as pd
import pytest
from mlserver.codecs import NumpyCodec, PandasCodec, StringCodec
from mlserver.grpc import dataplane_pb2 as pb
from mlserver.grpc import dataplane_pb2_grpc
from mlserver.grpc.converters import (
    ModelInferRequestConverter,
    ModelInferResponseConverter,
    ModelMetadataResponseConverter,
    ServerMetadataResponseConverter,
)
from mlserver.types import (
    InferenceErrorResponse,
    InferenceRequest,
    InferenceResponse,
    MetadataModelResponse,
    MetadataServerResponse,
    Parameters,
    RepositoryIndexResponse,
    RequestOutput,
)

FACTS = json.loads(Path(os.environ["EVERLOOP_FACTS"]).read_text())
EXPECTED = np.array(FACTS["probabilities"], np.float32)
URL = f"http://{FACTS['http']}/v2"
DTYPES = {
    "distance": np.float64,
    "age": np.float32,
    "stops": np.int32,
    "weekend": np.bool_,
    "departs": np.int64,
}


def request(use_bytes: bool = False, **options: Any) -> InferenceRequest:
    columns = FACTS["columns"]
    return InferenceRequest(
        id="call-7",
        inputs=[
            StringCodec.encode_input("carrier", columns["carrier"], use_bytes=use_bytes),
            *(
                NumpyCodec.encode_input(name, np.array(columns[name], dtype))
                for name, dtype in DTYPES.items()
            ),
        ],
        **options,
    )


def frame() -> pd.DataFrame:
    columns = FACTS["columns"]
    return pd.DataFrame(
        {
            "carrier": columns["carrier"],
            **{name: np.array(columns[name], dtype) for name, dtype in DTYPES.items()},
        }
    )


def post(asked: InferenceRequest, model: str = "flights") -> httpx.Response:
    content = asked.model_dump_json()
    return httpx.post(
        f"{URL}/models/{model}/infer",
        content=content,
        headers={"content-type": "application/json"},
    )


def check(response: InferenceResponse) -> None:
    assert (response.id, response.model_name, response.model_version) == ("call-7", "flights", "1")
    found = {item.name: item for item in response.outputs}
    probabilities = np.reshape(NumpyCodec.decode_output(found["probabilities"]), EXPECTED.shape)
    np.testing.assert_allclose(probabilities, EXPECTED, atol=1e-6)
    assert StringCodec.decode_output(found["label"]) == FACTS["labels"]


@pytest.fixture
def stub() -> Any:
    with grpc.insecure_channel(FACTS["grpc"]) as channel:
        yield dataplane_pb2_grpc.GRPCInferenceServiceStub(channel)


def test_types_over_rest() -> None:
    response = post(request())
    assert response.status_code == 200, response.text
    check(InferenceResponse.model_validate(response.json()))


def test_a_data_frame_over_rest() -> None:
    asked = PandasCodec.encode_request(frame(), use_bytes=False)
    asked.id = "call-7"
    response = post(asked)
    assert response.status_code == 200, response.text
    answer = InferenceResponse.model_validate(response.json())
    check(answer)
    assert list(answer.outputs[1].data) == FACTS["labels"]


def test_outputs_and_parameters_over_rest() -> None:
    asked = request(
        outputs=[RequestOutput(name="label", parameters=Parameters(content_type="str"))],
        parameters=Parameters(content_type="pd", headers={"x": "y"}),
    )
    answer = InferenceResponse.model_validate(post(asked).json())
    assert [item.name for item in answer.outputs] == ["label"]


def test_metadata_and_index_over_rest() -> None:
    server = MetadataServerResponse.model_validate(httpx.get(URL).json())
    assert server.name == "everloop-inference"
    model = MetadataModelResponse.model_validate(httpx.get(f"{URL}/models/flights").json())
    assert [item.name for item in model.inputs or ()] == ["carrier", *DTYPES]
    assert httpx.get(f"{URL}/models/flights/versions/1/ready").status_code == 200
    assert httpx.get(f"{URL}/health/live").status_code == 200
    assert httpx.get(f"{URL}/health/ready").status_code == 200
    index = httpx.post(f"{URL}/repository/index", json={"ready": True}).json()
    (listed,) = RepositoryIndexResponse.model_validate(index).root
    assert (listed.name, listed.version, listed.state) == ("flights", "1", "READY")


def test_errors_over_rest() -> None:
    response = post(request(), "ghost")
    assert response.status_code == 404
    error = InferenceErrorResponse.model_validate(response.json())
    assert error.error == "no model 'ghost' is served here"


@pytest.mark.parametrize("raw", [False, True])
def test_types_over_grpc(stub: Any, raw: bool) -> None:
    asked = ModelInferRequestConverter.from_types(
        request(use_bytes=True), model_name="flights", model_version="1", use_raw=raw
    )
    response = stub.ModelInfer(asked)
    assert bool(response.raw_output_contents) == raw
    check(ModelInferResponseConverter.to_types(response))


def test_a_data_frame_over_grpc(stub: Any) -> None:
    made = PandasCodec.encode_request(frame())
    made.id = "call-7"
    asked = ModelInferRequestConverter.from_types(made, model_name="flights")
    check(ModelInferResponseConverter.to_types(stub.ModelInfer(asked)))


def test_metadata_and_index_over_grpc(stub: Any) -> None:
    assert stub.ServerLive(pb.ServerLiveRequest()).live
    assert stub.ServerReady(pb.ServerReadyRequest()).ready
    assert stub.ModelReady(pb.ModelReadyRequest(name="flights")).ready
    server = ServerMetadataResponseConverter.to_types(
        stub.ServerMetadata(pb.ServerMetadataRequest())
    )
    assert server.name == "everloop-inference"
    model = ModelMetadataResponseConverter.to_types(
        stub.ModelMetadata(pb.ModelMetadataRequest(name="flights", version="1"))
    )
    assert model.versions == ["1"]


def test_the_repository_over_grpc(stub: Any) -> None:
    response = stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True))
    (listed,) = response.models
    assert (listed.name, listed.version) == ("flights", "1")


@pytest.mark.parametrize("options", [[], ["--binary-data"]])
def test_the_batch_command(tmp_path: Path, options: list[str]) -> None:
    lines = []
    for number in range(len(EXPECTED)):
        columns = {name: [values[number]] for name, values in FACTS["columns"].items()}
        made = InferenceRequest(
            inputs=[
                StringCodec.encode_input("carrier", columns["carrier"], use_bytes=False),
                *(
                    NumpyCodec.encode_input(name, np.array(columns[name], dtype))
                    for name, dtype in DTYPES.items()
                ),
            ]
        )
        lines.append(made.model_dump_json())
    (tmp_path / "in.txt").write_text("\n".join(lines) + "\n")
    command = Path(sys.executable).parent / "mlserver"
    done = subprocess.run(
        [
            *(command, "infer", "-u", FACTS["http"], "-m", "flights", "--workers", "2"),
            *("-i", tmp_path / "in.txt", "-o", tmp_path / "out.txt", *options),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in (tmp_path / "out.txt").read_text().splitlines()]
    assert len(answers) == len(EXPECTED)
    for answer in answers:
        (found,) = (item for item in answer["outputs"] if item["name"] == "probabilities")
        probabilities = np.reshape(found["data"], (-1, 2))
        assert any(np.allclose(probabilities, row, atol=1e-5) for row in EXPECTED)
