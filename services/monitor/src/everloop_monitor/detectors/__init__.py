"""What reads chunks, found by the name of its file: a detector learns from a reference sample, and then reads."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from everloop_monitor.detectors.detector import Detector, Read
from everloop_monitor.detectors.sample import Sample, chunk_of, reference_of

__all__ = [
    "Detector",
    "Read",
    "Sample",
    "chunk_of",
    "known_detectors",
    "load_detector",
    "reference_of",
]


def known_detectors() -> frozenset[str]:
    """Names that a pipeline may list; found without importing what the detectors need."""
    files = Path(__file__).parent.glob("*.py")
    return frozenset(
        path.stem for path in files if "\nDETECTOR" in path.read_text(encoding="utf-8")
    )


def load_detector(name: str) -> Detector:
    """The detector of that name.

    Raises:
        LookupError: there is none; the message names those that there are.
    """
    if name not in known_detectors():
        known = ", ".join(sorted(known_detectors()))
        raise LookupError(f"there is no detector '{name}'; there are: {known}")
    found: Detector = import_module(f"{__name__}.{name}").DETECTOR
    return found
