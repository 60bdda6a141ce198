"""The whole service as a process, on the real broker and the real object store."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import random
import signal
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import confluent_kafka
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition
from pyarrow import fs

from everloop import stack
from everloop_contracts.stubs.everloop.ingest.v1 import dead_letter_pb2, ingest_pb2
from everloop_contracts.stubs.everloop.ingest.v1.record_pb2 import Record
from everloop_ingest.adapters.s3 import ShardBucket
from everloop_runtime import clients
from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.events import decode
from everloop_runtime.kafka import ensure_topics
from everloop_runtime.s3 import s3_filesystem

Make = Callable[..., bytes]


def produce(service: Any, values: list[bytes], *, keys: bool = False) -> None:
    """Sends messages as any producer would."""
    producer = KafkaProducer(bootstrap_servers=service.endpoints.kafka_bootstrap, linger_ms=5)
    for index, value in enumerate(values):
        producer.send(
            service.pipeline.record_topic, value, key=str(index).encode() if keys else None
        )
    producer.flush(30)
    producer.close()


def origins(letters: list[Any]) -> dict[bytes, bytes]:
    """Dead letters by where they come from: the relay may send one twice around a kill."""
    return {dict(letter.headers)["everloop-origin"]: letter.value for letter in letters}


def dead_letters(service: Any, count: int) -> list[Any]:
    topic = service.pipeline.dead_letter_topic
    letters: list[Any] = service.consume(topic, lambda found: len(origins(found)) >= count)
    return letters


def by_id(messages: list[Any]) -> list[Any]:
    """Events as a consumer with an inbox sees them."""
    found = [decode(message.value, message.headers) for message in messages]
    return list({event.id: event for event in found}.values())


def datasets(service: Any, count: int) -> list[Any]:
    return by_id(service.consume("everloop.datasets", lambda found: len(by_id(found)) >= count))


def labels(service: Any, count: int) -> list[tuple[str, str]]:
    def known(messages: list[Any]) -> list[tuple[str, str]]:
        return sorted(
            pair
            for event in by_id(messages)
            for pair in zip(event.data.record_ids, event.data.labels, strict=True)
        )

    return known(service.consume("everloop.actuals", lambda found: len(known(found)) >= count))


@pytest.mark.e2e
def test_both_doors_lead_to_one_version_that_dvc_gets(
    ingest: Callable[[str], Any], make_record: Make
) -> None:
    service = ingest("parcels-doors")
    service.start()
    service.ready()
    good = [make_record(f"k{n}", weight=n % 50) for n in range(50)]
    produce(service, [*good, b"{", make_record("bad", zone="C"), b'{"parcel": "k7", "lost": true}'])
    pushed = ingest_pb2.PushRecordsRequest(
        pipeline=service.pipeline.name, records=[make_record("g1", lost=False), b"[]"]
    )
    answer = clients.call(service.stub.PushRecords, pushed, timeout=20)
    assert [(r.accepted, r.reason) for r in answer.results] == [
        (True, ""),
        (False, "NOT_AN_OBJECT"),
    ]

    version = service.cut("r1")
    assert service.cut("r1") == version
    assert (version.git_tag, version.rows, version.labelled_rows) == ("parcels-doors/v1", 51, 2)
    path = service.get(version)
    for item in version.objects:
        content = (path / Path(item.path).name).read_bytes()
        assert hashlib.md5(content).hexdigest() == item.md5
    listing = [{"md5": item.md5, "relpath": Path(item.path).name} for item in version.objects]
    digest = hashlib.md5(json.dumps(listing).encode()).hexdigest()
    assert version.data.md5 == f"{digest}.dir"  # as DVC hashes a directory
    table = pq.read_table(path).to_pylist()
    assert {row["parcel"] for row in table} == {*(f"k{n}" for n in range(50)), "g1"}
    assert {row["parcel"]: row["lost"] for row in table if row["lost"] is not None} == {
        "k7": True,
        "g1": False,
    }
    stats = service.stats()
    assert (stats.received, stats.accepted, stats.rejected) == (55, 52, 3)
    assert (stats.actuals, stats.lag) == (1, 0)
    reasons = {"MALFORMED_JSON": 1, "UNKNOWN_CATEGORY": 1, "NOT_AN_OBJECT": 1}
    assert dict(stats.rejected_by_reason) == reasons

    letters = dead_letters(service, 3)
    found = {dict(m.headers)["everloop-reason"].decode(): m.value for m in letters}
    assert found == {
        "MALFORMED_JSON": b"{",
        "UNKNOWN_CATEGORY": make_record("bad", zone="C"),
        "NOT_AN_OBJECT": b"[]",
    }
    [created] = datasets(service, 1)
    assert (created.data.dataset, created.cause) == (version, "r1")
    assert labels(service, 2) == [("g1", "false"), ("k7", "true")]

    with urllib.request.urlopen(f"http://{service.metrics}/metrics", timeout=10) as page:
        exposed = page.read().decode()
    for line in (
        'everloop_ingest_records_total{outcome="accepted",pipeline="parcels-doors"} 51.0',
        'everloop_ingest_records_total{outcome="actual",pipeline="parcels-doors"} 1.0',
        'everloop_ingest_records_total{outcome="rejected",pipeline="parcels-doors"} 3.0',
        'everloop_ingest_pushed_records_total{outcome="accepted",pipeline="parcels-doors"} 1.0',
        'everloop_ingest_pushed_records_total{outcome="rejected",pipeline="parcels-doors"} 1.0',
        'everloop_ingest_cut_duration_seconds_count{pipeline="parcels-doors"} 1.0',
        'everloop_ingest_shard_rows_sum{pipeline="parcels-doors"} 52.0',
    ):
        assert line in exposed
    assert service.stop() == 0


def typed(parcel: str) -> bytes:
    """A record as Protobuf, too heavy for the pipeline."""
    record = Record()
    record.fields["parcel"].string_value = parcel
    record.fields["sent"].timestamp_value.FromJsonString("2026-03-01T12:00:00Z")
    record.fields["weight"].float_value = 60.0
    return record.SerializeToString()


@pytest.mark.faults
def test_after_a_fix_what_was_rejected_comes_in_by_the_door_it_came_by(
    ingest: Callable[[str], Any], make_record: Make, spec: dict[str, Any]
) -> None:
    name = "parcels-fixed"
    service = ingest(name)
    service.start()
    service.ready()
    headers: list[tuple[str, str | bytes | None]] = [("content-type", b"application/x-protobuf")]
    topic, bootstrap = service.pipeline.record_topic, service.endpoints.kafka_bootstrap
    python = KafkaProducer(bootstrap_servers=bootstrap)
    python.send(topic, typed("typed-1"), key=b"typed-1", headers=headers)
    python.flush(30)
    python.close()
    confluent = confluent_kafka.Producer({"bootstrap.servers": bootstrap})
    confluent.produce(topic, key=b"typed-2", value=typed("typed-2"), headers=headers)
    assert confluent.flush(30) == 0
    requests = [
        ingest_pb2.StreamRecordsRequest(
            pipeline=name, records=[make_record(f"s{n}", weight=n)], request_id=f"r{n}"
        )
        for n in range(49, 53)
    ]
    for _ in range(2):  # the second stream repeats the first, and adds nothing
        answers = list(service.stub.StreamRecords(iter(requests), timeout=30))
        assert [item.results[0].reason for item in answers] == ["", "", *["OUT_OF_RANGE"] * 2]
    assert service.cut("v1").rows == 2
    stats = service.stats()
    assert (stats.received, stats.accepted, stats.rejected) == (6, 2, 4)
    assert service.stop() == 0

    wider = copy.deepcopy(spec)
    wider["schema"]["fields"]["weight"]["max"] = 100
    service.declare(name, wider)
    service.start()
    assert service.process.wait(60) == 2
    said = (service.folder / "log").read_text()
    assert f"{name}: schema.fields.weight.max: is 100.0, was 50.0; set schema.version to 2" in said
    wider["schema"]["version"] = 2
    service.declare(name, wider)
    service.start()
    service.ready()

    def listed() -> Any:
        request = dead_letter_pb2.ListDeadLettersRequest(pipeline=name)
        return clients.call(service.stub.ListDeadLetters, request, timeout=20).dead_letters

    assert {item.reason for item in listed()} == {"OUT_OF_RANGE"}
    replay = dead_letter_pb2.ReplayDeadLettersRequest(pipeline=name, request_id="fix")
    for _ in range(2):
        answer = clients.call(service.stub.ReplayDeadLetters, replay, timeout=20)
        assert (answer.replayed, answer.skipped) == (4, 0)
    deadline = time.monotonic() + 30
    while service.stats().received < 10:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    version = service.cut("v2")
    rows = pq.read_table(service.get(version)).to_pylist()
    assert sorted(row["parcel"] for row in rows) == [
        "s49",
        "s50",
        "s51",
        "s52",
        "typed-1",
        "typed-2",
    ]
    assert all(item.replay_request_id == "fix" for item in listed())
    assert service.stop() == 0


@pytest.mark.faults
def test_dead_letters_leave_the_object_store_when_their_time_is_over(
    ingest: Callable[[str], Any],
) -> None:
    service = ingest("parcels-short")
    service.environment["EVERLOOP_DEAD_LETTER_RETENTION_DAYS"] = str(5 / 86_400)
    service.start()
    service.ready()
    produce(service, [b"{"])
    endpoints = service.endpoints
    filesystem = s3_filesystem(
        endpoints.s3_url, endpoints.s3_access_key, endpoints.s3_secret_key, "us-east-1"
    )
    below = fs.FileSelector("everloop-data/parcels-short", allow_not_found=True, recursive=True)
    seen = False
    deadline = time.monotonic() + 60
    while True:
        objects = [i for i in filesystem.get_file_info(below) if i.type is fs.FileType.File]
        seen = seen or bool(objects)
        if seen and not objects:
            break
        assert time.monotonic() < deadline, (service.folder / "log").read_text()
        time.sleep(0.05)
    request = dead_letter_pb2.ListDeadLettersRequest(pipeline="parcels-short")
    assert not clients.call(service.stub.ListDeadLetters, request, timeout=20).dead_letters
    assert service.stop() == 0


DEATHS = [
    ("everloop_ingest.adapters.s3:ShardBucket.put", "after", "2"),
    ("everloop_ingest.adapters.store.settlements:Settlements.settle", "after", "2"),
    ("everloop_ingest.adapters.git:Git.tag", "after", "1"),
    ("everloop_ingest.adapters.store.cuts:Cuts.complete", "before", "1"),
]


@pytest.mark.faults
def test_killed_at_every_step_it_neither_loses_nor_doubles(
    ingest: Callable[[str], Any], make_record: Make
) -> None:
    service = ingest("parcels-killed")
    generator = random.Random(7)
    expected: dict[str, bool | None] = {}
    sent: list[bytes] = []
    service.start()
    service.ready()
    assert service.stop() == 0
    for round_, death in enumerate(DEATHS):
        batch = []
        for number in range(60):
            name = f"{round_}-{number}"
            expected[name] = generator.choice([None, True, False])
            batch.append(make_record(name, lost=expected[name]))
        late = next(name for name, label in expected.items() if label is None)
        expected[late] = True
        batch += [b'{"parcel": "%s", "lost": true}' % late.encode(), b"broken %d" % round_]
        produce(service, batch, keys=True)
        sent += batch
        service.start(*death)
        deadline = time.monotonic() + 60
        while not service.died(0.2):
            assert time.monotonic() < deadline, death
            with contextlib.suppress(EverloopError):
                service.cut(f"r{round_}")
    service.start()
    service.ready()
    requests = [f"r{round_}" for round_ in range(len(DEATHS))]
    answers = [service.cut(request) for request in requests]
    assert [service.cut(request) for request in requests] == answers
    version = service.cut("last")

    stats = service.stats()
    assert (stats.received, stats.lag) == (len(sent), 0)
    assert (stats.rejected, stats.actuals) == (len(DEATHS), len(DEATHS))
    table = pq.read_table(service.get(version)).to_pylist()
    assert {row["parcel"]: row["lost"] for row in table} == expected
    assert len(table) == len(expected)
    found = origins(dead_letters(service, len(DEATHS)))
    assert sorted(found.values()) == [b"broken %d" % n for n in range(len(DEATHS))]
    created = datasets(service, version.version)
    numbers = sorted(event.data.dataset.version for event in created)
    assert numbers == list(range(1, version.version + 1))
    texts = {True: "true", False: "false"}
    known = {name: texts[label] for name, label in expected.items() if label is not None}
    assert labels(service, len(known)) == sorted(known.items())
    assert service.stop() == 0


def dropped(service: Any, below: int) -> None:
    """Makes the broker drop the first messages of partition 0, as its retention does."""
    admin = KafkaAdminClient(bootstrap_servers=service.endpoints.kafka_bootstrap)
    admin.delete_records({TopicPartition(service.pipeline.record_topic, 0): below}, 10_000)
    admin.close()


def sent_to_one_partition(service: Any, values: list[bytes]) -> None:
    producer = KafkaProducer(bootstrap_servers=service.endpoints.kafka_bootstrap)
    for value in values:
        producer.send(service.pipeline.record_topic, value, partition=0)
    producer.flush(30)
    producer.close()


@pytest.mark.faults
def test_what_the_broker_drops_unread_is_counted_and_the_rest_goes_on(
    ingest: Callable[[str], Any], make_record: Make
) -> None:
    service = ingest("parcels-dropped")
    service.start()
    service.ready()
    sent_to_one_partition(service, [make_record("first")])
    assert service.cut("r1").rows == 1

    # While it runs: it is held up, as by a machine that is too busy, and the broker goes on.
    service.process.send_signal(signal.SIGSTOP)
    sent_to_one_partition(service, [make_record("a0")])  # may be on its way already
    sent_to_one_partition(service, [make_record(f"a{n}") for n in range(1, 100)])
    dropped(service, 61)
    service.process.send_signal(signal.SIGCONT)
    version = service.cut("r2")
    names = {row["parcel"] for row in pq.read_table(service.get(version)).to_pylist()}
    assert {"first", *(f"a{n}" for n in range(60, 100))} <= names
    lost = 101 - len(names)
    assert 0 < lost <= 60
    assert (service.stats().received, service.stats().lost) == (len(names), lost)

    # While it was away.
    assert service.stop() == 0
    sent_to_one_partition(service, [make_record(f"b{n}") for n in range(100)])
    dropped(service, 131)
    service.start()
    service.ready()
    version = service.cut("r3")
    assert version.rows == len(names) + 70
    stats = service.stats()
    assert (stats.received, stats.lost, stats.lag) == (len(names) + 70, lost + 30, 0)
    with urllib.request.urlopen(f"http://{service.metrics}/metrics", timeout=10) as page:
        exposed = page.read().decode()
    assert 'everloop_ingest_lost_total{pipeline="parcels-dropped"} 30.0' in exposed
    said = (service.folder / "log").read_text()
    assert "everloop.records.parcels-dropped/0 has dropped offsets 101 to 130, 30 messages" in said
    assert service.stop() == 0


@pytest.mark.faults
def test_what_a_kill_leaves_in_the_bucket_goes_and_with_it_what_was_erased(
    ingest: Callable[[str], Any], make_record: Make
) -> None:
    service = ingest("parcels-orphans")
    service.environment["EVERLOOP_ORPHAN_GRACE_HOURS"] = str(8 / 3600)
    endpoints = service.endpoints
    filesystem = s3_filesystem(
        endpoints.s3_url, endpoints.s3_access_key, endpoints.s3_secret_key, "us-east-1"
    )
    below = fs.FileSelector("everloop-data/parcels-orphans", allow_not_found=True, recursive=True)

    def contents() -> dict[str, bytes]:
        found = {}
        for info in filesystem.get_file_info(below):
            with contextlib.suppress(FileNotFoundError):  # deleted since it was listed
                if info.type is fs.FileType.File:
                    found[info.path] = filesystem.open_input_file(info.path).read()
        return found

    def holding(parcel: str) -> list[str]:
        """Objects with a record of somebody, as it is or in a Parquet file."""
        return [
            path
            for path, content in contents().items()
            if "parcel" in pq.read_schema(pa.BufferReader(content)).names
            and parcel in pq.read_table(pa.BufferReader(content)).column("parcel").to_pylist()
        ]

    ensure_topics(endpoints.kafka_bootstrap, {service.pipeline.record_topic: 3})
    sent_to_one_partition(service, [make_record("somebody")])
    service.start("everloop_ingest.adapters.s3:ShardBucket.put", "after", "1")
    assert service.died(60.0), (service.folder / "log").read_text()
    assert len(holding("somebody")) == 1
    sent_to_one_partition(service, [make_record("another")])
    service.start()
    service.ready()
    assert service.cut("r1").rows == 2
    erase = ingest_pb2.EraseRecordsRequest(
        pipeline=service.pipeline.name,
        record_ids=["somebody"],
        request_id="e1",
        actor="test",
        reason="asked",
    )
    assert clients.call(service.stub.EraseRecords, erase, timeout=60).dataset.rows == 1
    deadline = time.monotonic() + 60
    while left := holding("somebody"):
        assert time.monotonic() < deadline, left
        time.sleep(0.2)
    sent_to_one_partition(service, [make_record("third")])
    version = service.cut("r2")
    rows = pq.read_table(service.get(version)).to_pylist()
    assert {row["parcel"] for row in rows} == {"another", "third"}
    assert service.stop() == 0


@pytest.mark.faults
def test_it_outlives_the_broker_and_the_object_store(
    ingest: Callable[[str], Any], make_record: Make
) -> None:
    service = ingest("parcels-outage")
    service.start()
    service.ready()
    home = Path(service.endpoints.home)

    def push(name: str, timeout: float) -> None:
        request = ingest_pb2.PushRecordsRequest(
            pipeline=service.pipeline.name, records=[make_record(name)]
        )
        clients.call(service.stub.PushRecords, request, timeout=timeout)

    push("before", 20)
    pids = {part: stack.kill(home, part) for part in ("kafka", "s3")}
    began = time.monotonic()
    with pytest.raises(EverloopError) as caught:
        push("lost", 1.5)
    assert caught.value.kind is Kind.UNAVAILABLE
    assert time.monotonic() - began < 3
    for part, pid in pids.items():
        stack.wait_healthy(home, part, 60, not_pid=pid)
    deadline = time.monotonic() + 60
    while True:
        try:
            push("after", 5)
            break
        except EverloopError as error:
            assert error.kind is Kind.UNAVAILABLE
            assert time.monotonic() < deadline
    version = service.cut("r1")
    found = {row["parcel"] for row in pq.read_table(service.get(version)).to_pylist()}
    # What was answered with UNAVAILABLE may have arrived or not; what was acknowledged has.
    assert {"before", "after"} <= found <= {"before", "after", "lost"}
    assert service.stop() == 0


@pytest.mark.faults
def test_an_object_store_that_is_away_is_an_outage(tmp_path: Path) -> None:
    files = ShardBucket(s3_filesystem("http://127.0.0.1:9", "a", "b", "us-east-1"), "bucket")
    for attempt in (lambda: files.put("x", b"y"), lambda: files.fetch(["x"], tmp_path)):
        with pytest.raises(EverloopError) as caught:
            attempt()
        assert caught.value.kind is Kind.UNAVAILABLE
