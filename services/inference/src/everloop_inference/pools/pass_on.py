"""The methods of gRPC that name a model, with those for a model in a pool passed on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import grpc

from everloop_inference.grpc_errors import aborted
from everloop_inference.pools.pools import Pools
from everloop_inference.ports import RpcRequest
from everloop_inference.rpc import Abort, Methods
from everloop_inference.rpc.methods import Handler
from everloop_runtime.errors import CODES, EverloopError

__all__ = ["PASSED", "pass_on"]

PASSED: Final[Mapping[str, Mapping[str, str]]] = {
    "inference.GRPCInferenceService": {"ModelMetadata": "name", "ModelInfer": "model_name"},
    "everloop.inference.v1.InferenceService": {
        "Predict": "model",
        "Explain": "model",
        "GetModel": "model",
    },
}
"""By service and method, the field of the request that names the model.

Readiness and lists are answered without asking a pool; of a stream each request goes its own way.
"""


def pass_on(methods: Methods, pools: Pools) -> None:
    """Puts what passes requests on in front of the methods."""
    for service, fields in PASSED.items():
        handlers = methods.services[service]
        for name, field in fields.items():
            handlers[name] = _passing(f"/{service}/{name}", handlers[name], field, pools)


def _passing(path: str, handler: Handler, field: str, pools: Pools) -> Handler:
    here: Callable[[Any, Any], Any] | None = handler.unary_unary
    write: Any = handler.response_serializer
    assert here is not None

    def answer(request: Any, context: Any) -> Any:
        if getattr(request, field) in pools:
            return _passed(path, getattr(request, field), request, context, pools)
        return here(request, context)

    def serialize(response: Any) -> bytes:
        """A pool's answer is serialized already."""
        return response if type(response) is bytes else write(response)

    passing: Handler = grpc.unary_unary_rpc_method_handler(
        answer, handler.request_deserializer, serialize
    )
    return passing


async def _passed(path: str, model: str, request: Any, context: Any, pools: Pools) -> bytes:
    passed = RpcRequest(
        path,
        request.SerializeToString(),
        tuple((key, value) for key, value in context.invocation_metadata() or ()),
        context.time_remaining(),
    )
    try:
        reply = await pools.rpc(model, passed)
    except EverloopError as error:
        raise aborted(error) from error
    if reply.code:
        raise Abort(CODES[reply.code], reply.details, reply.metadata)
    return reply.message
