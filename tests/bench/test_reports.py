"""The reports on swaps and outages, as documented, on the smallest run they have."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from bench.report import OUT, ROOT

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.parametrize("name", ["swap", "outage"])
def test_the_report_finds_nothing_wrong(name: str) -> None:
    result = OUT / f"{name}.json"
    result.unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", f"bench.{name}", "--quick"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=540,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    document = json.loads(result.read_text())
    assert set(document["checks"].values()) == {0}
    assert all(row["requests"] > 0 for row in document["figures"])
    assert document["ratios"]
