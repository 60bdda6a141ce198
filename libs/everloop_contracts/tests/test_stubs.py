"""What the generated code promises beyond protobuf's own."""

from __future__ import annotations

import pickle

from everloop_contracts.stubs.everloop.inference.v1 import inference_pb2 as native
from everloop_contracts.stubs.inference import grpc_service_pb2 as oip


def test_messages_survive_pickling_which_ray_does_to_them() -> None:
    request = native.PredictRequest(model="flights")
    request.rows.add().update({"distance": 1.0})
    assert pickle.loads(pickle.dumps(request)) == request
    tensors = oip.ModelInferRequest(model_name="flights", id="7")
    assert pickle.loads(pickle.dumps(tensors)) == tensors
