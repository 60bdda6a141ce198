"""One clean run of the small slice, shared by the tests that look at it."""

from __future__ import annotations

import pytest
from demo_run import CleanRun, run_small


@pytest.fixture(scope="session")
def clean_run(tmp_path_factory: pytest.TempPathFactory) -> CleanRun:
    """Runs once per session: it takes minutes."""
    root = tmp_path_factory.mktemp("clean")
    return CleanRun(root, run_small(root))
