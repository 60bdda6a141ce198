"""What runs models: onnxruntime for the export, mlflow.pyfunc for what was logged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from everloop_features.inputs import InputSpec
from everloop_inference.adapters.onnx import OnnxEngine
from everloop_inference.adapters.pyfunc import PyfuncEngine, has_other_flavor

__all__ = ["LocalEngines"]


class LocalEngines:
    """See `ports.Engines`; both run in this process."""

    def exported(self, graph: bytes) -> OnnxEngine:
        """See `ports.Engines`."""
        return OnnxEngine(graph)

    def can_run_logged(self, folder: Path) -> bool:
        """See `ports.Engines`; a graph that was logged as such is no other model."""
        return has_other_flavor(folder)

    def logged(self, folder: Path, inputs: Sequence[InputSpec]) -> PyfuncEngine:
        """See `ports.Engines`."""
        return PyfuncEngine(folder, inputs)
