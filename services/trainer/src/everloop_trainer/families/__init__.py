"""Model families, found by the name of their file."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

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
    "params_of",
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


def params_of(name: str, texts: Mapping[str, str]) -> dict[str, Any]:
    """Parameters as the family takes them, from text, which holds every digit of a number.

    Raises:
        LookupError: there is no such family, or a parameter of it is not there or not one of its choices.
        ValueError: one is no number.
    """
    found: dict[str, Any] = {}
    for key, item in load_family(name).space.items():
        text = texts[key]
        if isinstance(item, Choice):
            values = {str(value): value for value in item.values}
            found[key] = values[text]
        else:
            found[key] = int(text) if item.whole else float(text)
    return found
