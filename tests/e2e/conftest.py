"""One clean run of the small slice, shared by the tests that look at it."""

from __future__ import annotations

import pytest
from demo_run import CleanRun, run_small
from live_prometheus import series
from readme_run import Reader
from tools.dashboards import queries

from everloop import Everloop, stack
from everloop.stack.parts import prometheus


@pytest.fixture(scope="session")
def clean_run(tmp_path_factory: pytest.TempPathFactory) -> CleanRun:
    """Runs once per session: it takes minutes. Then README.md is followed on the stack that is up."""
    root = tmp_path_factory.mktemp("clean")
    try:
        summary = run_small(root, keep=True)
        outcomes = Reader(root / "demo", tmp_path_factory.mktemp("readme")).read()
        with Everloop.connect(root / "demo") as everloop:
            received = everloop.stats("flight-delays").received
        seen = series(stack.load(root / "demo"), queries()) if prometheus.installed() else {}
    finally:
        stack.down(root / "demo")
    return CleanRun(root, summary, outcomes, received, seen)
