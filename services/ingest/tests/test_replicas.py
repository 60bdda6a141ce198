"""Several ingest processes share the partitions of a topic: they come, leave and are killed while records come in."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow.parquet as pq
import pytest
from kafka import KafkaProducer

from everloop_runtime.errors import EverloopError

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(600)]

RECORDS = 4_000
"""Sent while one process comes or goes."""


class Load:
    """Sends records, and waits until all of them are settled."""

    def __init__(self, service: Any, make_record: Callable[..., bytes]) -> None:
        self.sent = 0
        self._service, self._record = service, make_record
        self._producer = KafkaProducer(bootstrap_servers=service.endpoints.kafka_bootstrap)

    def during(self, action: Callable[[], object]) -> None:
        with ThreadPoolExecutor(1) as pool:
            sending = pool.submit(self._send)
            action()
            sending.result(60)
        deadline = time.monotonic() + 90
        while self._service.stats().received < self.sent:
            assert time.monotonic() < deadline, self._service.stats()
            time.sleep(0.1)

    def _send(self) -> None:
        for _ in range(RECORDS):
            key = f"p{self.sent}"
            self._producer.send(
                self._service.pipeline.record_topic, self._record(key), key=key.encode()
            )
            self.sent += 1
        self._producer.flush(60)

    def close(self) -> None:
        self._producer.close(timeout=30)


@pytest.fixture
def load(
    ingest: Callable[..., Any], spec: dict[str, Any], make_record: Callable[..., bytes]
) -> Iterator[tuple[Any, Load]]:
    one = ingest("parcels-shared")
    one.environment["EVERLOOP_INSTANCE"] = "one"
    one.declare("parcels-shared", spec | {"partitions": 6, "cut": {"rows": 10**6, "age": "1h"}})
    one.start()
    one.ready()
    sending = Load(one, make_record)
    yield one, sending
    sending.close()


def taken(process: Any) -> list[str]:
    """Partitions that a process has begun to read, one entry for each time."""
    log = (process.folder / "log").read_text()
    return re.findall(r"records\.parcels-shared/(\d) from offset", log)


def until_taken(process: Any, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(taken(process)) < count:
        assert time.monotonic() < deadline, (process.folder / "log").read_text()
        time.sleep(0.1)


def test_what_stays_with_a_process_is_not_taken_from_it(
    load: tuple[Any, Load], ingest: Callable[..., Any]
) -> None:
    one, records = load
    until_taken(one, 6)
    two, three = ingest("two", one), ingest("three", one)

    def join(process: Any, count: int) -> None:
        process.start()
        process.ready()
        until_taken(process, count)

    def kill(process: Any) -> None:
        process.process.kill()
        process.process.wait(30)

    records.during(lambda: join(two, 3))
    records.during(lambda: join(three, 2))
    assert sorted(taken(one)) == list("012345")
    assert (len(taken(two)), len(taken(three))) == (3, 2)
    # What leaves for good leaves its partitions to the others; theirs go on as they are.
    records.during(three.stop)
    records.during(lambda: kill(two))
    counts = [len(taken(process)) for process in (one, two, three)]
    print(f"{records.sent} records; partitions begun by one, two, three: {counts}")
    assert counts[0] == 6 + 6 - 2  # those of its own that it never gave away are not begun again
    version = one.cut("all")
    rows = pq.read_table(one.get(version)).column("parcel").to_pylist()
    assert sorted(rows) == sorted(f"p{number}" for number in range(records.sent))
    stats = one.stats()
    assert (stats.received, stats.accepted, stats.lag) == (records.sent, records.sent, 0)
    assert one.stop() == 0


def test_a_cut_that_dies_with_its_process_is_finished_by_another(
    ingest: Callable[..., Any], spec: dict[str, Any], make_record: Callable[..., bytes]
) -> None:
    one = ingest("parcels-cut")
    one.environment |= {"EVERLOOP_INSTANCE": "one", "EVERLOOP_CUT_LEASE_SECONDS": "3"}
    one.declare("parcels-cut", spec | {"cut": {"rows": 10**6, "age": "1h"}})
    two = ingest("two", one)
    # Killed when the tag is set and pushed, and the database does not know it.
    one.start("everloop_ingest.adapters.store.cuts:Cuts.complete", "before", "1")
    one.ready()
    two.start()
    two.ready()
    names = {f"p{number}" for number in range(500)}
    producer = KafkaProducer(bootstrap_servers=one.endpoints.kafka_bootstrap)
    for name in names:
        producer.send(one.pipeline.record_topic, make_record(name), key=name.encode())
    producer.close(timeout=30)
    with pytest.raises(EverloopError):
        one.cut("r1")
    killed = time.monotonic()
    assert one.died(30)
    version = two.cut("r1")
    seconds = time.monotonic() - killed
    print(f"{version.git_tag} was there {seconds:.1f} s after its cutter was killed")
    one.start()
    one.ready()
    # Both cut at once what comes next: one version, the same for both.
    producer = KafkaProducer(bootstrap_servers=one.endpoints.kafka_bootstrap)
    producer.send(one.pipeline.record_topic, make_record("late"), key=b"late")
    producer.close(timeout=30)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(
            lambda process: process.cut(f"r2-{process.folder.name}"), (one, two)
        )
    assert first == second
    assert (version.version, first.version) == (1, 2)
    for cut, wanted in ((version, names), (first, names | {"late"})):
        assert {*pq.read_table(one.get(cut)).column("parcel").to_pylist()} == wanted
    events = one.consume("everloop.datasets", lambda found: len(found) >= 2)
    assert len({dict(event.headers)["ce_id"] for event in events}) == 2
    assert (one.stop(), two.stop()) == (0, 0)
