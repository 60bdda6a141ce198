"""Stand-ins for the ports, and a small model to serve with them; for tests and for trying the core by hand."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import threading
import time
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from google.rpc import status_pb2
from onnx import TensorProto, helper

from everloop_contracts.pipeline import FieldType
from everloop_features.inputs import InputSpec, feeds_from_rows
from everloop_inference.domain import Answer, Call, Production, Trial, Wanted
from everloop_inference.http_app import HttpApp
from everloop_inference.ports import Message, Outcome, Report
from everloop_inference.predict import Predictor
from everloop_inference.rpc import Abort
from everloop_runtime.errors import EverloopError, Kind

__all__ = [
    "INPUTS",
    "ROW",
    "Artifact",
    "Caller",
    "MemoryArtifacts",
    "MemoryRegistry",
    "MemorySink",
    "ask",
    "request",
    "sample_artifact",
    "told",
]

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

    def write(self, folder: Path) -> None:
        """Writes the files as the artifact store gives them."""
        if self.graph:
            (folder / "model.onnx").write_bytes(self.graph)
        if self.logged:
            shutil.copytree(self.logged, folder / "model")
        (folder / "manifest.json").write_text(json.dumps(self.manifest))
        (folder / "golden.json").write_text(json.dumps(self.golden))


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


def ask(
    predictor: Predictor, rows: Sequence[Mapping[str, Any]], name: str = "flights", size: int = 0
) -> Answer:
    """Predicts rows on an event loop of its own; for a predictor that nobody else uses meanwhile."""

    async def asking() -> Answer:
        return await predictor.rows(name, rows, Call(time.perf_counter(), size))

    return asyncio.run(asking())


async def request(
    app: HttpApp, method: str, path: str, body: bytes = b"", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Asks the HTTP application without a socket; returns status, headers and body."""
    messages: list[dict[str, Any]] = []
    waiting: list[dict[str, Any]] = [{"type": "http.request", "body": body}]

    async def receive() -> dict[str, Any]:
        if not waiting:
            await asyncio.Event().wait()  # the caller stays
        return waiting.pop()

    async def send(message: MutableMapping[str, Any]) -> None:
        messages.append(dict(message))

    named = [(name.replace("_", "-").encode(), text.encode()) for name, text in headers.items()]
    await app({"method": method, "path": path, "headers": named}, receive, send)
    start, content = messages
    answered = {name.decode(): text.decode() for name, text in start["headers"]}
    return start["status"], answered, content["body"]


class Caller:
    """The context of a gRPC call without a channel: somebody who waits for so many seconds."""

    def __init__(self, seconds: float | None = None) -> None:
        """Takes the time until the deadline."""
        self._seconds = seconds

    def invocation_metadata(self) -> Sequence[tuple[str, str]]:
        """Nothing."""
        return ()

    def time_remaining(self) -> float | None:
        """Time until the deadline."""
        return self._seconds


def told(refusal: Abort) -> status_pb2.Status:
    """What a refused caller is told, with its details."""
    return status_pb2.Status.FromString(dict(refusal.trailing_metadata)["grpc-status-details-bin"])


class MemoryRegistry:
    """A registry that says what it is told; `down` makes it unreachable.

    Attributes:
        reports: what replicas have told about trials, oldest first.
    """

    def __init__(self) -> None:
        """Names nothing."""
        self.down = False
        self.reports: list[Report] = []
        self._versions: dict[str, Wanted] = {}
        self._trials: dict[str, Trial] = {}
        self._lock = threading.Lock()

    def promote(self, wanted: Wanted) -> None:
        """Puts a version into Production; a trial of its model has ended with that."""
        with self._lock:
            self._versions = {**self._versions, wanted.model: wanted}
            self._trials.pop(wanted.model, None)

    def begin(self, trial: Trial) -> None:
        """Puts a version on trial."""
        with self._lock:
            self._trials[trial.model] = trial

    def abort(self, model: str) -> None:
        """Ends the trial of a model."""
        with self._lock:
            self._trials.pop(model, None)

    def production(self) -> Production:
        """See `ports.Registry`."""
        self._check()
        with self._lock:
            return Production(list(self._versions.values()), list(self._trials.values()))

    def report(self, report: Report) -> bool:
        """See `ports.Registry`; a failure aborts the trial, as the gateway does."""
        self._check()
        with self._lock:
            self.reports.append(report)
            running = [trial for trial in self._trials.values() if trial.rollout == report.rollout]
            if report.failure and running:
                del self._trials[running[0].model]
                return False
            return bool(running)

    def _check(self) -> None:
        if self.down:
            raise EverloopError(Kind.UNAVAILABLE, "UNAVAILABLE", "the registry is down")


class MemoryArtifacts:
    """An artifact store in memory; `down` makes it unreachable."""

    def __init__(self) -> None:
        """Holds nothing."""
        self.down = False
        self.downloads = 0
        self.runs: dict[str, Artifact] = {}

    def download(self, run_id: str, folder: Path) -> None:
        """See `ports.Artifacts`."""
        if self.down or run_id not in self.runs:
            raise EverloopError(Kind.UNAVAILABLE, "ARTIFACT_UNAVAILABLE", f"no run {run_id}")
        self.downloads += 1
        self.runs[run_id].write(folder)


class MemorySink:
    """A broker in memory; `away` makes it refuse, `refuse_above` makes it reject large messages for good."""

    def __init__(self) -> None:
        """Holds nothing."""
        self.away = False
        self.refuse_above = 1 << 30
        self.messages: list[Message] = []
        self._lock = threading.Lock()

    def send(self, messages: Sequence[Message]) -> list[Outcome]:
        """See `ports.LogSink`."""
        return [self._one(message) for message in messages]

    def _one(self, message: Message) -> Outcome:
        with self._lock:
            if self.away:
                return Outcome.AWAY
            if len(message.value) > self.refuse_above:
                return Outcome.REFUSED
            self.messages.append(message)
            return Outcome.STORED

    def close(self) -> None:
        """See `ports.LogSink`."""
