"""Running an exported model as inference does."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime

__all__ = ["latency", "run_onnx"]

CALLS: Final = 300
WARM_UP: Final = 20


def run_onnx(content: bytes, feeds: Mapping[str, Any]) -> npt.NDArray[np.float32]:
    """Scores rows as inference does."""
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    answered: npt.NDArray[np.float32] = session.run(None, dict(feeds))[0]
    return answered


def latency(content: bytes, feeds: Mapping[str, Any], share: float = 0.99) -> float:
    """Quantile of the seconds that one row takes, in one thread, over `CALLS` calls with rows of `feeds` in turn."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    rows = len(next(iter(feeds.values())))
    single = [
        {name: feed[[row]] for name, feed in feeds.items()} for row in range(min(rows, WARM_UP))
    ]
    taken = []
    for call in range(WARM_UP + CALLS):
        began = time.perf_counter()
        session.run(None, single[call % len(single)])
        taken.append(time.perf_counter() - began)
    return float(np.quantile(taken[WARM_UP:], share))
