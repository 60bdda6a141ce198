"""On a real Ray: what is killed comes back, and predictions go on where they can."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest
from services.inference.tests.cluster import Cluster, cluster_of_processes

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with cluster_of_processes() as cluster:
        yield cluster


def test_everything_that_is_killed_comes_back(cluster: Cluster, until: Callable[..., None]) -> None:
    cluster.publish(1)
    cluster.start_head()
    began = time.monotonic()
    cluster.start_service()
    until(cluster.serving, 240)
    print(f"ready after {time.monotonic() - began:.1f} s")
    until(lambda: cluster.predict() == 1, 120)

    # A promotion, through MLflow's own client.
    cluster.publish(2)
    began = time.monotonic()
    until(lambda: cluster.predict() == 2, 120)
    print(f"promotion served after {time.monotonic() - began:.1f} s")
    replica = cluster.replica_pid()

    # The service process is killed: no prediction fails, and it comes back to the same replica.
    assert cluster.service
    cluster.service.kill()
    cluster.service.wait()
    cluster.start_service()
    while not cluster.serving():
        assert cluster.predict() == 2
    assert cluster.replica_pid() == replica

    # The replica is killed: Ray Serve starts another, which knows what to serve without the registry.
    cluster.registry.versions = []
    began = time.monotonic()
    os.kill(replica, signal.SIGKILL)
    until(lambda: cluster.predict() == 2 and cluster.replica_pid() != replica, 120)
    print(f"replica back after {time.monotonic() - began:.1f} s")

    # Ray's head is killed: the service deploys again on the new one.
    assert cluster.head
    cluster.head.kill()
    cluster.head.wait()
    until(lambda: cluster.predict() == 0, 120)
    began = time.monotonic()
    cluster.start_head()
    until(lambda: cluster.predict() == 2, 240)
    print(f"head back and serving after {time.monotonic() - began:.1f} s")
    assert cluster.service.poll() is None

    # The service's setting changes: the new deployment takes over, and nobody finds a closed door.
    until(cluster.serving, 120)
    replica = cluster.replica_pid()
    cluster.service.terminate()
    assert cluster.service.wait(30) == 0
    cluster.environment["EVERLOOP_LOG_BATCH_ROWS"] = "400"
    cluster.start_service()
    answers = []
    deadline = time.monotonic() + 180
    while not cluster.serving() or cluster.replica_pid() == replica:
        answers.append(cluster.predict())
        assert time.monotonic() < deadline
    assert set(answers) == {2}
