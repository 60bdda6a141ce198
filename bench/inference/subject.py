"""What every server is given: one model, the rows it is asked about, and the right answers."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from bench.flights_model import fitted, taught
from everloop_features import Feeds, InputSpec, feeds_from_rows, inputs_of

__all__ = ["MODEL", "Subject", "prepare"]

MODEL = "flight-delays"
FAMILY = "hist_gradient_boosting"
ROWS = 64
GOLDEN_ROWS = 32


@dataclass(frozen=True)
class Subject:
    """The model and the rows.

    Attributes:
        folder: holds `model.onnx`, `manifest.json` and `golden.json`, as the trainer logs them.
        inputs: raw columns of the model.
        rows: flights as JSON objects.
        feeds: the same rows as the graph takes them.
        expected: probabilities of the same rows.
    """

    folder: Path
    inputs: tuple[InputSpec, ...]
    rows: list[dict[str, Any]]
    feeds: Feeds
    expected: npt.NDArray[np.float32]


def prepare(folder: Path) -> Subject:
    """Fits and exports the model into a folder.

    The rows have no missing values: not every peer's JSON can say null.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sample = taught()
    inputs = inputs_of(sample.pipeline)
    _, _, graph = fitted(sample, FAMILY)
    content = graph.SerializeToString()
    whole = [row for row in sample.rows if all(row[spec.name] is not None for spec in inputs)]
    rows = whole[:ROWS]
    feeds = feeds_from_rows(rows, inputs)
    expected: Any = onnxruntime.InferenceSession(content).run(None, feeds)[0]
    manifest = {
        "pipeline": MODEL,
        "family": FAMILY,
        "task": "binary",
        "classes": ["false", "true"],
        "inputs": [spec.to_json() for spec in inputs],
        "dataset_version": 1,
        "dataset_tag": f"{MODEL}/v1",
        "onnx_sha256": hashlib.sha256(content).hexdigest(),
        "threshold": 0.5,
    }
    golden = {"rows": rows[:GOLDEN_ROWS], "probabilities": expected[:GOLDEN_ROWS].tolist()}
    (folder / "model.onnx").write_bytes(content)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "golden.json").write_text(json.dumps(golden))
    return Subject(folder, inputs, rows, feeds, expected)
