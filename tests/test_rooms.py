"""No room of a service needs a room that needs it: a room is a file or a folder right under the service's package."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import pytest

PACKAGES = sorted(Path(__file__).parents[1].glob("services/*/src/everloop_*"))


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


def _needed(path: Path, package: str) -> set[str]:
    modules: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == package:
            modules += [f"{package}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.append(node.module)
    return {name.split(".")[1] for name in modules if name.startswith(f"{package}.")}
