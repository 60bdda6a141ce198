"""The model behind every server that leaves reading the request to its user: rows in, probabilities out.

It checks nothing. Columns of one type are made at once: for a single row an array per column would cost more than
the model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import onnxruntime

EPOCH_DAY = datetime(1970, 1, 1).toordinal()


class Flights:
    """The graph in a session with one thread, as ours has it."""

    def __init__(self) -> None:
        folder = Path(os.environ["BENCH_MODEL"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        inputs = json.loads((folder / "manifest.json").read_text())["inputs"]
        self.texts = [item["name"] for item in inputs if item["type"] == "string"]
        self.times = [
            (item["name"], ZoneInfo(item["timezone"]))
            for item in inputs
            if item["type"] == "timestamp"
        ]
        self.numbers = [
            item["name"] for item in inputs if item["type"] not in ("string", "timestamp")
        ]

    def predict(self, rows: Sequence[Mapping[str, Any]]) -> Any:
        """Returns probabilities `[rows, 2]`."""
        texts = np.array([[row[name] for row in rows] for name in self.texts], dtype=object)
        numbers = np.array([[row[name] for row in rows] for name in self.numbers], np.float32)
        feeds = dict(zip(self.texts, texts[:, :, None], strict=True))
        feeds.update(zip(self.numbers, numbers[:, :, None], strict=True))
        for name, zone in self.times:
            seconds = [_wall_clock(row[name], zone) for row in rows]
            feeds[name] = np.array(seconds, np.int64)[:, None]
        return self.run(feeds)

    def run(self, feeds: Mapping[str, Any]) -> Any:
        """Returns probabilities `[rows, 2]` for columns `[rows, 1]`."""
        return self.session.run(None, feeds)[0]


def _wall_clock(text: str, zone: ZoneInfo) -> int:
    wall = datetime.fromisoformat(text).astimezone(zone)
    days = wall.toordinal() - EPOCH_DAY
    return ((days * 24 + wall.hour) * 60 + wall.minute) * 60 + wall.second
