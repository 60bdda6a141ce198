"""mlflow.pyfunc: a logged model in whatever flavor it was logged; the slow way to serve it.

MLflow and the flavor's library are imported by the first model that needs them: it takes seconds and some 200 MB.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from everloop_contracts.pipeline import FieldType
from everloop_features.inputs import NULL_TIME, Feeds, InputSpec
from everloop_inference.domain import EngineKind

__all__ = ["PyfuncEngine", "has_other_flavor"]


def has_other_flavor(folder: Path) -> bool:
    """Whether a folder holds an MLflow model that is more than an ONNX graph."""
    try:
        flavors = yaml.safe_load((folder / "MLmodel").read_text())["flavors"]
        return str(flavors["python_function"]["loader_module"]) != "mlflow.onnx"
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return False


class PyfuncEngine:
    """Asks the model with a DataFrame, as MLflow's own server does.

    Columns are what a record holds: text as pandas' own strings, whole numbers as int64, numbers as float64, booleans
    as bool, timestamps as wall-clock time without a zone; numbers and booleans that may be null are float64.
    The model answers with probabilities `[rows, classes]`, or with numbers.

    Attributes:
        kind: MLFLOW.
    """

    kind = EngineKind.MLFLOW

    def __init__(self, folder: Path, inputs: Sequence[InputSpec]) -> None:
        """Takes the folder with `MLmodel`.

        Raises:
            Exception: the flavor's library cannot load it.
        """
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        import mlflow.pyfunc
        import pandas

        self._pandas = pandas
        self._inputs = inputs
        self._model: Any = mlflow.pyfunc.load_model(str(folder))

    def run(self, feeds: Feeds) -> npt.NDArray[np.float32]:
        """See `Engine.run`."""
        frame = self._pandas.DataFrame(
            {spec.name: _column(spec, feeds[spec.name][:, 0]) for spec in self._inputs}
        )
        answer = np.asarray(self._model.predict(frame), dtype=np.float32)
        return answer.reshape(len(frame), -1)


def _column(spec: InputSpec, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if spec.type is FieldType.STRING:
        # The null of a text is "" in a feed.
        texts = values.copy()
        texts[values == ""] = None if spec.nullable else ""
        return texts
    if spec.type is FieldType.TIMESTAMP:
        times = values.astype("datetime64[s]")
        times[values == NULL_TIME] = np.datetime64("NaT")
        return times
    if spec.nullable or spec.type is FieldType.FLOAT:
        return values.astype(np.float64)
    return values.astype(np.int64 if spec.type is FieldType.INT else np.bool_)
