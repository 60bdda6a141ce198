"""A small model to serve, and a row for it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from everloop_contracts.artifacts import artifact_sha256
from everloop_contracts.pipeline import FieldType
from everloop_features.inputs import InputSpec, feeds_from_rows

__all__ = ["INPUTS", "ROW", "Artifact", "sample_artifact"]

INPUTS = (
    InputSpec("carrier", FieldType.STRING),
    InputSpec("distance", FieldType.FLOAT),
    InputSpec("age", FieldType.FLOAT, nullable=True),
    InputSpec("stops", FieldType.INT),
    InputSpec("weekend", FieldType.BOOL, nullable=True),
    InputSpec("departs", FieldType.TIMESTAMP, timezone="America/New_York"),
)
ROW: dict[str, Any] = {
    "flight_id": "f-1",
    "carrier": "AA",
    "distance": 500.0,
    "age": 3.0,
    "stops": 1,
    "weekend": True,
    "departs": "2013-07-01T10:30:00-04:00",
}
CLASSES = {"binary": ("false", "true"), "multiclass": ("a", "b", "c"), "regression": ()}


@dataclass(frozen=True, slots=True)
class Artifact:
    """The files of a model version.

    Attributes:
        graph: the ONNX file.
        manifest: its manifest.
        golden: its golden rows and answers.
        logged: folder of the MLflow model, where there is one besides the graph.
    """

    graph: bytes
    manifest: dict[str, object]
    golden: dict[str, object]
    logged: Path | None = None

    @property
    def sha256(self) -> str:
        """SHA-256 of the graph; empty where there is none."""
        return hashlib.sha256(self.graph).hexdigest() if self.graph else ""

    @property
    def files(self) -> dict[str, bytes]:
        """Its files by path, as replicas load them."""
        files = {
            "manifest.json": json.dumps(self.manifest).encode(),
            "golden.json": json.dumps(self.golden).encode(),
        }
        if self.graph:
            files["model.onnx"] = self.graph
        if self.logged:
            for path in self.logged.rglob("*"):
                if path.is_file():
                    files[f"model/{path.relative_to(self.logged).as_posix()}"] = path.read_bytes()
        return files

    @property
    def artifact_sha256(self) -> str:
        """SHA-256 of all its files."""
        return artifact_sha256(
            {path: hashlib.sha256(content).hexdigest() for path, content in self.files.items()}
        )

    def write(self, folder: Path) -> None:
        """Writes the files."""
        for path, content in self.files.items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)


def sample_artifact(bias: float = 0.0, task: str = "binary") -> Artifact:
    """A model of six inputs whose answers depend on every one of them, and on `bias`."""
    graph = _graph(bias, task)
    rows = [ROW, {**ROW, "age": None, "carrier": "UA"}, {**ROW, "weekend": None, "stops": 4}]
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    answers = session.run(None, feeds_from_rows(rows, INPUTS))[0]
    manifest = {
        "pipeline": "flights",
        "family": "sample",
        "task": task,
        "classes": CLASSES[task],
        "inputs": [spec.to_json() for spec in INPUTS],
        "dataset_version": 1,
        "dataset_tag": "flights/v1",
        "onnx_sha256": hashlib.sha256(graph).hexdigest(),
        "threshold": 0.5,
    }
    return Artifact(graph, manifest, {"rows": rows, "probabilities": np.asarray(answers).tolist()})


def _graph(bias: float, task: str) -> bytes:
    def constant(name: str, *values: float) -> onnx.TensorProto:
        return helper.make_tensor(name, TensorProto.FLOAT, [len(values)], values)

    classes = len(CLASSES[task]) or 1
    numbers = ["distance", "age", "stops", "weekend"]
    nodes = [
        helper.make_node(
            "LabelEncoder",
            ["carrier"],
            ["carrier_code"],
            domain="ai.onnx.ml",
            keys_strings=["AA", "UA"],
            values_floats=[0.5, -0.5],
            default_float=0.25,
        ),
        helper.make_node("Mod", ["departs", "day"], ["second"]),
        helper.make_node("Cast", ["second"], ["second_float"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["second_float", "seconds_of_day"], ["time"]),
        helper.make_node("Concat", numbers, ["raw"], axis=1),
        helper.make_node("IsNaN", ["raw"], ["missing"]),
        helper.make_node("Where", ["missing", "instead", "raw"], ["filled"]),
        helper.make_node("Mul", ["filled", "weights"], ["weighted"]),
        helper.make_node("ReduceSum", ["weighted", "axis"], ["total"], keepdims=1),
        helper.make_node("Sum", ["total", "carrier_code", "time", "bias"], ["logit"]),
        helper.make_node("Mul", ["logit", "spread"], ["logits"]),
        helper.make_node("Identity" if classes == 1 else "Softmax", ["logits"], ["probabilities"]),
    ]
    types = {FieldType.STRING: TensorProto.STRING, FieldType.TIMESTAMP: TensorProto.INT64}
    graph = helper.make_graph(
        nodes,
        "sample",
        [
            helper.make_tensor_value_info(
                spec.name, types.get(spec.type, TensorProto.FLOAT), [None, 1]
            )
            for spec in INPUTS
        ],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, classes])],
        [
            helper.make_tensor("day", TensorProto.INT64, [1], [86_400]),
            helper.make_tensor("axis", TensorProto.INT64, [1], [1]),
            constant("seconds_of_day", 86_400.0),
            constant("instead", 0.1, 0.2, 0.3, 0.4),
            constant("weights", -0.001, 0.05, 0.2, 0.3),
            constant("bias", bias),
            constant("spread", *([1.0] if classes == 1 else np.linspace(-1, 1, classes).tolist())),
        ],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
