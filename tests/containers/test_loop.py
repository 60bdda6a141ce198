"""The demo's small slice goes round the loop with every service in its image."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from demo_run import run_small

pytestmark = [pytest.mark.containers, pytest.mark.timeout(1800)]


@pytest.fixture
def root(
    engine: docker.DockerClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    # The data repository is the container's user's.
    for name, value in {"COUNT": "1", "KEY_0": "safe.directory", "VALUE_0": "*"}.items():
        monkeypatch.setenv(f"GIT_CONFIG_{name}", value)
    yield tmp_path
    for left in engine.containers.list(filters={"label": f"everloop.home={tmp_path / 'demo'}"}):
        left.remove(force=True)


def test_the_loop_closes_in_containers(root: Path) -> None:
    program = "tests.containers.demo_in_containers"
    summary = run_small(root, program=program, within_seconds=1500)
    records, predictions = summary["records"], summary["predictions"]
    assert records["sent"] == records["accepted"] + records["rejected"]
    assert predictions["sent"] > 0 == predictions["failed"]
    causes = {line["version"]: line["cause"] for line in summary["versions"]}
    assert (causes[1], causes[2]) == ("first_data", "drift")
    assert summary["causation_gaps"] == []
