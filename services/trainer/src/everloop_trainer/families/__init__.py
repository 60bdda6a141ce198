"""Model families, found by the name of their file."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from everloop_trainer.families.family import Choice, Family, Params, Predict, Problem, Range, Space

__all__ = [
    "Choice",
    "Family",
    "Params",
    "Predict",
    "Problem",
    "Range",
    "Space",
    "known_families",
    "load_family",
]


def known_families() -> frozenset[str]:
    """Names that a pipeline may list; found without importing what the families need."""
    files = Path(__file__).parent.glob("*.py")
    return frozenset(path.stem for path in files if "\nFAMILY" in path.read_text(encoding="utf-8"))


def load_family(name: str) -> Family:
    """The family of that name.

    Raises:
        LookupError: there is none; the message names those that there are.
    """
    if name not in known_families():
        known = ", ".join(sorted(known_families()))
        raise LookupError(f"there is no model family '{name}'; there are: {known}")
    family: Family = import_module(f"{__name__}.{name}").FAMILY
    return family
