"""Stand-ins for the ports, and a small model to serve with them; for tests and for trying the core by hand."""

from everloop_inference.fakes.callers import Caller, ask, request, told
from everloop_inference.fakes.outside import MemoryArtifacts, MemoryRegistry, MemorySink
from everloop_inference.fakes.sample import INPUTS, ROW, Artifact, sample_artifact

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
