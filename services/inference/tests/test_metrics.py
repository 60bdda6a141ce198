"""Each process exports what it measures, and no gauge of another that it never sets."""

from __future__ import annotations

import subprocess
import sys

import pytest

LIST = """
import everloop_inference.{module}
from prometheus_client import REGISTRY
print(*(family.name for family in REGISTRY.collect()))
"""


@pytest.mark.parametrize(
    ("module", "own", "others"),
    [
        ("app", "data_plane_up", "registry_up"),
        ("deployment", "registry_up", "data_plane_up"),
        ("replica", "registry_up", "data_plane_up"),
    ],
)
def test_a_process_exports_only_its_own_gauges(module: str, own: str, others: str) -> None:
    listed = subprocess.run(
        [sys.executable, "-c", LIST.format(module=module)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    assert f"everloop_inference_{own}" in listed
    assert f"everloop_inference_{others}" not in listed
