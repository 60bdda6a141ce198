"""On a real Ray: what is killed comes back, and predictions go on where they can."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from services.inference.tests.cluster import Cluster, cluster_of_processes

from everloop_inference.fakes import ROW

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with cluster_of_processes() as cluster:
        yield cluster


def test_everything_that_is_killed_comes_back(cluster: Cluster, until: Callable[..., None]) -> None:
    cluster.publish(1)
    cluster.start_head()
    began = time.monotonic()
    cluster.start_service()
    until(cluster.serving, 480)
    print(f"ready after {time.monotonic() - began:.1f} s")
    until(lambda: cluster.predict() == 1, 300)

    # A promotion; its files come from the registry.
    cluster.publish(2)
    began = time.monotonic()
    until(lambda: cluster.predict() == 2, 300)
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
    until(lambda: cluster.predict() == 2 and cluster.replica_pid() != replica, 300)
    print(f"replica back after {time.monotonic() - began:.1f} s")

    # Ray's head is killed: the service deploys again on the new one.
    assert cluster.head
    cluster.head.kill()
    cluster.head.wait()
    until(lambda: cluster.predict() == 0, 300)
    began = time.monotonic()
    cluster.start_head()
    until(lambda: cluster.predict() == 2, 480)
    print(f"head back and serving after {time.monotonic() - began:.1f} s")
    assert cluster.service.poll() is None

    # The service's setting changes: the new deployment takes over, and nobody finds a closed door.
    until(cluster.serving, 300)
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


class Kept:
    """One connection that is kept and asked on and on."""

    def __init__(self, cluster: Cluster) -> None:
        self.connection = http.client.HTTPConnection(cluster.http, timeout=30)
        self.answers = 0
        assert self.ask() == 200
        own = self.connection.sock.getsockname()[1]
        port = int(cluster.http.rpartition(":")[2])
        self.pid = next(
            other.pid
            for other in psutil.net_connections("tcp4")
            if other.laddr and other.raddr and (other.laddr.port, other.raddr.port) == (port, own)
        )

    def ask(self) -> int:
        body = json.dumps({"rows": [ROW]})
        self.connection.request("POST", "/v1/models/flights:predict", body)
        answer = self.connection.getresponse()
        answer.read()
        return answer.status

    def ask_on(self, stop: threading.Event) -> str:
        """Returns what went wrong first; nothing, hopefully."""
        while not stop.is_set():
            try:
                status = self.ask()
            except (OSError, http.client.HTTPException) as error:
                return repr(error)
            if status != 200:
                return str(status)
            self.answers += 1
        return ""


def kill_under_load(
    cluster: Cluster, until: Callable[..., None], doomed: int, kill: Callable[[], object]
) -> None:
    """Ends a replica while connections to all of them are busy; those to the others notice nothing."""
    kept: list[Kept] = []

    def connected_to_all() -> bool:
        kept.append(Kept(cluster))
        return len(kept) >= 8 and {one.pid for one in kept} > {doomed}

    until(connected_to_all, 300)
    stop = threading.Event()
    with ThreadPoolExecutor(len(kept)) as callers:
        try:
            asked = {one: callers.submit(one.ask_on, stop) for one in kept}
            began = time.monotonic()
            kill()
            until(lambda: not psutil.pid_exists(doomed), 60)
            print(f"the replica ended after {time.monotonic() - began:.2f} s")
            before = sum(one.answers for one in kept)
            # Who comes now finds the others.
            for _ in range(50):
                assert cluster.predict() == 1
            until(lambda: sum(one.answers for one in kept) > before + 1000, 300)
        finally:
            stop.set()
        for one, found in asked.items():
            found.result()
            one.connection.close()
        others = [one for one in kept if one.pid != doomed]
        assert [asked[one].result() for one in others] == [""] * len(others)
        print(f"{sum(one.answers for one in others)} answers of the others, none failed")


def test_what_is_killed_on_one_node_costs_the_other_nothing(
    cluster: Cluster, until: Callable[..., None]
) -> None:
    cluster.environment |= {"EVERLOOP_REPLICAS": "2", "EVERLOOP_REPLICA_CPUS": "1"}
    cluster.publish(1)
    # Each node has room for one replica.
    cluster.start_head(cpus=1)
    node = cluster.start_node(cpus=1)
    cluster.start_service()
    until(cluster.serving, 480)

    def on(node: subprocess.Popen[bytes]) -> set[int]:
        """Replicas of a node that listen."""
        below = {child.pid for child in psutil.Process(node.pid).children(recursive=True)}
        port = int(cluster.http.rpartition(":")[2])
        return {
            other.pid
            for other in psutil.net_connections("tcp4")
            if other.pid in below
            and other.status == psutil.CONN_LISTEN
            and other.laddr
            and other.laddr.port == port
        }

    head = cluster.head
    assert head
    until(lambda: on(node) and on(head), 300)
    # A replica listens after a while even if it could not load a model yet.
    until(lambda: all(cluster.predict() == 1 for _ in range(20)), 300)
    (doomed,) = on(node)
    kill_under_load(cluster, until, doomed, node.kill)
    assert cluster.serving()

    # The node comes back, and with it the replica that there was no room for.
    again = cluster.start_node(cpus=1)
    began = time.monotonic()
    until(lambda: on(again), 300)
    print(f"the node serves again after {time.monotonic() - began:.1f} s")
    until(lambda: all(cluster.predict() == 1 for _ in range(20)), 300)

    # A replica alone, which comes back where it was.
    (doomed,) = on(again)
    kill_under_load(cluster, until, doomed, lambda: os.kill(doomed, signal.SIGKILL))
    until(lambda: on(again), 300)
