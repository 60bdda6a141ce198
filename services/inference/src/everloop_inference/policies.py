"""What the pipelines say about serving."""

from __future__ import annotations

from pathlib import Path

from everloop_contracts.pipeline import load_pipelines
from everloop_inference.domain import ServingPolicy

__all__ = ["load_policies"]


def load_policies(folder: Path) -> dict[str, ServingPolicy]:
    """Reads the serving rules of every pipeline of a folder, by pipeline name.

    Raises:
        PipelineError: a pipeline cannot be loaded.
    """
    return {name: ServingPolicy.of(pipeline) for name, pipeline in load_pipelines(folder).items()}
