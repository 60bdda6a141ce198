"""Raw contents of the Open Inference Protocol to columns and back, for servers that hand over the message itself."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

TYPES = {"FP32": np.float32, "INT64": np.int64}


def feeds(request: Any) -> dict[str, Any]:
    """Reads a `ModelInferRequest` with raw contents."""
    return {
        item.name: _texts(raw) if item.datatype == "BYTES" else _numbers(raw, item.datatype)
        for item, raw in zip(request.inputs, request.raw_input_contents, strict=True)
    }


def fill(response: Any, probabilities: Any) -> Any:
    """Writes the one output into a `ModelInferResponse`."""
    response.outputs.add(name="probabilities", datatype="FP32", shape=probabilities.shape)
    response.raw_output_contents.append(probabilities.tobytes())
    return response


def _numbers(raw: bytes, datatype: str) -> Any:
    return np.frombuffer(raw, TYPES[datatype]).reshape(-1, 1)


def _texts(raw: bytes) -> Any:
    texts, position = [], 0
    while position < len(raw):
        (length,) = struct.unpack_from("<I", raw, position)
        position += 4 + length
        texts.append([raw[position - length : position].decode()])
    return np.array(texts, dtype=object)
