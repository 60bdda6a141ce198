"""MLServer: a runtime of one's own, as its documentation shows, without codecs that only add copies."""

from __future__ import annotations

from collections.abc import AsyncIterator

import numpy as np
from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput

from bench.inference.peers.flights import Flights

TYPES = {"FP32": np.float32, "INT64": np.int64}


class Runtime(MLModel):
    """The graph."""

    async def load(self) -> bool:
        """Loads it."""
        self.flights = Flights()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answers columns, of texts that are str over HTTP and bytes over gRPC."""
        feeds = {}
        for item in payload.inputs:
            data = item.data.root
            if item.datatype == "BYTES":
                data = [text if isinstance(text, str) else text.decode() for text in data]
                feeds[item.name] = np.array(data, dtype=object)[:, None]
            else:
                feeds[item.name] = np.array(data, TYPES[item.datatype])[:, None]
        answer = self.flights.run(feeds)
        output = ResponseOutput(
            name="probabilities",
            datatype="FP32",
            shape=list(answer.shape),
            data=answer.ravel().tolist(),
        )
        return InferenceResponse(model_name=self.name, outputs=[output])

    async def predict_stream(
        self, payloads: AsyncIterator[InferenceRequest]
    ) -> AsyncIterator[InferenceResponse]:
        """Answers one after the other."""
        async for payload in payloads:
            yield await self.predict(payload)
