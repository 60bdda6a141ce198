"""Rooms of a service: files and folders right under its package.

None needs a room that needs it, and outside systems are met in few of them.
"""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import pytest

PACKAGES = sorted(Path(__file__).parents[1].glob("services/*/src/everloop_*"))
OUTSIDE = {"boto3", "botocore", "confluent_kafka", "dvc", "kafka", "mlflow", "ray"}
MEETING = {"adapters", "placement"}
ABOUT_NOTHING_ELSE = {("search", "ray"), ("trial", "ray"), ("consumer", "kafka")}
"""Rooms outside of those, and the system that each of them is about."""


def test_there_are_services() -> None:
    assert len(PACKAGES) == 5


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_the_rooms_of_a_service_need_each_other_in_one_direction(package: Path) -> None:
    needs: dict[str, set[str]] = {}
    for path in package.rglob("*.py"):
        room = path.relative_to(package).with_suffix("").parts[0]
        needs.setdefault(room, set()).update(_needed(path, package.name) - {room})
    order = list(graphlib.TopologicalSorter(needs).static_order())  # raises CycleError
    assert order.index("domain") < order.index("app")


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_outside_systems_are_met_where_contributing_says(package: Path) -> None:
    met = {
        (path.relative_to(package).with_suffix("").parts[0], system)
        for path in package.rglob("*.py")
        for system in {name.split(".")[0] for name in _imported(path, package.name)} & OUTSIDE
    }
    assert {pair for pair in met if pair[0] not in MEETING} <= ABOUT_NOTHING_ELSE


def _needed(path: Path, package: str) -> set[str]:
    named = _imported(path, package)
    return {name.split(".")[1] for name in named if name.startswith(f"{package}.")}


def _imported(path: Path, package: str) -> set[str]:
    modules: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == package:
            modules += [f"{package}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.append(node.module)
    return set(modules)
