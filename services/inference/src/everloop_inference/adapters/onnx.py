"""onnxruntime: the exported graph of a model."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from everloop_features.inputs import Feeds
from everloop_inference.domain import EngineKind

__all__ = ["OnnxEngine"]


class OnnxEngine:
    """Runs a graph in the thread that asks: a second one costs more than a prediction.

    Attributes:
        kind: ONNX.
        inputs: names of the graph's inputs.
    """

    kind = EngineKind.ONNX

    def __init__(self, graph: bytes) -> None:
        """Takes the serialized graph.

        Raises:
            Exception: onnxruntime cannot use it; it has no error type of its own.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            graph, options, providers=["CPUExecutionProvider"]
        )
        self._outputs = [item.name for item in self._session.get_outputs()]
        self.inputs = [item.name for item in self._session.get_inputs()]

    def run(self, feeds: Feeds) -> npt.NDArray[np.float32]:
        """See `Engine.run`."""
        outputs: list[Any] = self._session.run(self._outputs, feeds)
        result: npt.NDArray[np.float32] = outputs[0]
        return result
