"""What it takes to train a model again: data, declaration, parameters, code and environment, as recorded with it."""

from __future__ import annotations

import hashlib
import subprocess
from dataclasses import dataclass
from functools import cache
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter

from everloop_contracts.pipeline import Pipeline
from everloop_trainer.domain import Dataset

__all__ = ["ENVIRONMENT", "RECIPE", "Recipe", "code_digest", "code_revision", "environment"]

RECIPE: Final = "recipe.json"
"""File below `everloop/` of a run that holds its recipe."""
ENVIRONMENT: Final = "environment.txt"
"""File beside it with every installed distribution, one a line."""
CODE: Final = ("everloop_contracts", "everloop_features", "everloop_trainer")
"""Packages whose code decides what a model becomes."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a model was made, and what came of it.

    Attributes:
        pipeline: as it was declared then; it holds the seed.
        dataset: the version, its files with their MD5.
        family: of the winner of the search.
        params: of the winner.
        metrics: on the holdout.
        onnx_sha256: of the model.
        code_digest: of the code that made it.
        code_revision: git commit of that code; empty where it was no checkout.
    """

    pipeline: Pipeline
    dataset: Dataset
    family: str
    params: dict[str, Any]
    metrics: dict[str, float]
    onnx_sha256: str
    code_digest: str
    code_revision: str

    def to_json(self) -> bytes:
        """Everything; `from_json` gives an equal recipe, its numbers to the bit."""
        return _ADAPTER.dump_json(self, by_alias=True, indent=1)

    @classmethod
    def from_json(cls, content: bytes) -> Recipe:
        """Reads what `to_json` wrote."""
        return _ADAPTER.validate_json(content)


_ADAPTER: Final = TypeAdapter(Recipe)


@cache
def code_digest() -> str:
    """SHA-256 over the source files of `CODE`, by name and content: it tells code apart where git is not at hand."""
    digest = hashlib.sha256()
    for package in CODE:
        root = _folder(package)
        for path in sorted(root.rglob("*.py")):
            content = path.read_bytes()
            digest.update(f"{package}/{path.relative_to(root)}\0{len(content)}\0".encode())
            digest.update(content)
    return digest.hexdigest()


@cache
def code_revision() -> str:
    """Git commit of the checkout that the code runs from, with `-dirty` where files differ; empty where it is none."""
    command = ["git", "-C", str(_folder(__name__.partition(".")[0])), "describe", "--always"]
    options = ["--abbrev=40", "--exclude=*", "--dirty"]
    try:
        done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def environment() -> tuple[str, ...]:
    """Every installed distribution as `name==version`, sorted: what a requirements file pins."""
    found = {f"{item.name.lower().replace('_', '-')}=={item.version}" for item in distributions()}
    return tuple(sorted(found))


def _folder(package: str) -> Path:
    spec = find_spec(package)
    assert spec is not None and spec.origin is not None  # a package that this one imports
    return Path(spec.origin).parent
