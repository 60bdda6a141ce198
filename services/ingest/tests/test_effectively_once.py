"""Effectively once: 200,000 records through both doors, while what they pass through is killed again and again.

The record topic, read by a stock consumer at the end, says what came in; the versions, the dead letters and the books
are held against it.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import orjson
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from kafka import KafkaProducer

from everloop import stack
from everloop.stack.home import Home
from everloop.stack.supervisor import Supervisor
from everloop_contracts.stubs.everloop.ingest.v1 import dead_letter_pb2, ingest_pb2
from everloop_contracts.stubs.everloop.ingest.v1.dataset_pb2 import DatasetVersion
from everloop_contracts.stubs.everloop.ingest.v1.record_pb2 import Record
from everloop_runtime import clients
from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.events import decode

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(1200)]

NAME = "parcels-once"
RECORDS = 200_000
ROUNDS = 12
SECONDS_PER_ROUND = 90.0
RECORDS_PER_MESSAGE = 250
PROTOBUF: list[tuple[str, str | bytes | None]] = [("content-type", b"application/x-protobuf")]


@dataclass(frozen=True)
class Sent:
    """A record on its way: by which door, as what."""

    door: str
    key: str
    value: bytes


@dataclass
class Plan:
    """What is sent in each round, and what must be there in the end."""

    rounds: list[list[Sent]] = field(default_factory=lambda: [[] for _ in range(ROUNDS)])
    rows: dict[str, tuple[float, bool | None]] = field(default_factory=dict)
    bad: set[bytes] = field(default_factory=set)
    injected: Counter[str] = field(default_factory=Counter)

    def times_sent(self) -> Counter[bytes]:
        return Counter(sent.value for records in self.rounds for sent in records)


def as_json(parcel: str, weight: float) -> bytes:
    return orjson.dumps(
        {"parcel": parcel, "sent": "2026-03-01T12:00:00Z", "weight": weight, "zone": "A"}
    )


def as_protobuf(parcel: str, weight: float) -> bytes:
    record = Record()
    record.fields["parcel"].string_value = parcel
    record.fields["sent"].timestamp_value.FromJsonString("2026-03-01T12:00:00Z")
    record.fields["weight"].float_value = weight
    return record.SerializeToString(deterministic=True)


def bad_record(number: int) -> bytes:
    return [
        b'{"parcel": "bad-%d"' % number,
        as_json(f"bad-{number}", 51.0),
        b'{"parcel": "bad-%d", "colour": "red"}' % number,
        b"[%d]" % number,
    ][number % 4]


def make_plan(dice: random.Random) -> Plan:
    """200,000 records and, on top, records again, later events, late labels and bad ones."""
    plan = Plan()
    for number in range(RECORDS):
        turn = number * ROUNDS // RECORDS
        parcel, weight = f"p{number}", round(dice.uniform(0, 50), 3)
        plan.rows[parcel] = (weight, None)
        kind = dice.choice(("json", "protobuf", "grpc", "grpc"))
        encode = as_protobuf if kind == "protobuf" else as_json
        sent = Sent(kind, parcel, encode(parcel, weight))
        plan.rounds[turn].append(sent)
        later = plan.rounds[min(turn + 1, ROUNDS - 1)]
        extra = dice.random()
        if extra < 0.03:
            plan.rounds[turn].append(sent)
            plan.injected["the same record again"] += 1
        elif extra < 0.06 and turn < ROUNDS - 1:
            weight = round(dice.uniform(0, 50), 3)
            plan.rows[parcel] = (weight, None)
            later.append(Sent(dice.choice(("json", "grpc")), parcel, as_json(parcel, weight)))
            plan.injected["a later event"] += 1
        elif extra < 0.08:
            plan.rows[parcel] = (weight, True)
            label = b'{"parcel": "%s", "lost": true}' % parcel.encode()
            later.append(Sent(dice.choice(("json", "grpc")), parcel, label))
            plan.injected["a late label"] += 1
        elif extra < 0.10:
            value = bad_record(number)
            plan.bad.add(value)
            plan.rounds[turn].append(Sent(dice.choice(("json", "grpc")), parcel, value))
            plan.injected["a bad record"] += 1
    return plan


class Progress:
    """Counts acknowledged records, and lets somebody wait for a number of them."""

    def __init__(self) -> None:
        self.count = 0
        self._more = threading.Condition()

    def add(self, records: int) -> None:
        with self._more:
            self.count += records
            self._more.notify_all()

    def wait(self, count: int, seconds: float) -> None:
        with self._more:
            assert self._more.wait_for(lambda: self.count >= count, seconds), (
                f"{self.count} of {count} records are acknowledged after {seconds} s"
            )


class TopicDoor:
    """A stock producer, which sends again by itself."""

    def __init__(self, service: Any, progress: Progress) -> None:
        self._topic, self._progress = service.pipeline.record_topic, progress
        self._producer = KafkaProducer(
            bootstrap_servers=service.endpoints.kafka_bootstrap,
            acks="all",
            enable_idempotence=True,
            delivery_timeout_ms=int(SECONDS_PER_ROUND * 1000),
            max_block_ms=int(SECONDS_PER_ROUND * 1000),
        )

    def send(self, records: Sequence[Sent]) -> None:
        futures = []
        for sent in records:
            headers = PROTOBUF if sent.door == "protobuf" else []
            future = self._producer.send(
                self._topic, sent.value, key=sent.key.encode(), headers=headers
            )
            future.add_callback(lambda _: self._progress.add(1))
            futures.append(future)
        for future in futures:
            future.get(timeout=SECONDS_PER_ROUND)

    def close(self) -> None:
        self._producer.close(timeout=30)


class StreamDoor:
    """Streams of records; what has no answer is sent again, with the same request id, on the next stream."""

    def __init__(self, service: Any, progress: Progress) -> None:
        self._stub, self._progress = service.stub, progress
        self._numbers = iter(range(10**9))
        self.streams = 0
        self.unavailable = 0
        self.doubtful: set[bytes] = set()
        """Records that were sent once or more without an answer: the topic may hold them several times."""
        self.repeated = 0

    def send(self, records: Sequence[Sent]) -> None:
        values = [sent.value for sent in records]
        requests = [
            ingest_pb2.StreamRecordsRequest(
                pipeline=NAME,
                records=values[first : first + RECORDS_PER_MESSAGE],
                request_id=f"request-{next(self._numbers)}",
            )
            for first in range(0, len(values), RECORDS_PER_MESSAGE)
        ]
        answers = self._until_answered(requests, self._progress.add)
        again = slice(None, None, 10)  # some are sent once more though they were answered
        assert self._until_answered(requests[again], self._repeat) == answers[again]

    def _repeat(self, records: int) -> None:
        self.repeated += records

    def _until_answered(self, requests: Sequence[Any], count: Callable[[int], None]) -> list[Any]:
        waiting, answers = deque(requests), []
        deadline = time.monotonic() + SECONDS_PER_ROUND
        while waiting:
            self.streams += 1
            try:
                left = deadline - time.monotonic()
                call = self._stub.StreamRecords(
                    iter(list(waiting)), timeout=left, wait_for_ready=True
                )
                for answer in call:
                    waiting.popleft()
                    answers.append(list(answer.results))
                    count(len(answer.results))
            except grpc.RpcError as error:
                assert error.code() is grpc.StatusCode.UNAVAILABLE, error
                self.unavailable += 1
                self.doubtful.update(value for request in waiting for value in request.records)
        return answers


@dataclass(frozen=True)
class Fault:
    """Harm to a part of the stack, besides the kill of ingest that each round has.

    Attributes:
        name: for people.
        part: whom it is done to.
        stopped: whether the part stays away, and refuses connections, until it is started again; killed otherwise.
        until: share of the round's records that is acknowledged before it ends.
    """

    name: str
    part: str
    stopped: bool
    until: float

    def begin(self, home: Path) -> Callable[[], object]:
        """Does harm, and returns what ends it."""
        if not self.stopped:
            pid = stack.kill(home, self.part)
            return lambda: stack.wait_healthy(home, self.part, 60, not_pid=pid)
        supervisor = Supervisor(Home.at(home))
        supervisor.stop(self.part)

        def end() -> None:
            supervisor.start(self.part)
            stack.wait_healthy(home, self.part, 60)

        return end


FAULTS = {
    2: Fault("the broker is killed (-9)", "kafka", stopped=False, until=0.0),
    4: Fault("S3 refuses connections: SeaweedFS is stopped", "s3", stopped=True, until=0.9),
    6: Fault("the broker is stopped and started", "kafka", stopped=True, until=0.0),
    8: Fault("S3 is killed (-9)", "s3", stopped=False, until=0.0),
}
"""By the number of their round."""


def run_round(
    service: Any,
    records: Sequence[Sent],
    doors: tuple[TopicDoor, StreamDoor],
    progress: Progress,
    kills: Sequence[int],
    fault: Fault | None,
) -> None:
    """Sends a round's records by both doors, and kills ingest whenever so many of them are acknowledged."""
    before = progress.count
    topic, stream = doors
    with ThreadPoolExecutor(2) as senders:
        sending = [
            senders.submit(topic.send, [sent for sent in records if sent.door != "grpc"]),
            senders.submit(stream.send, [sent for sent in records if sent.door == "grpc"]),
        ]
        for number, kill in enumerate(kills):
            progress.wait(before + kill, SECONDS_PER_ROUND)
            if number == 0 and fault:
                end = fault.begin(Path(service.endpoints.home))
            service.process.kill()
            service.process.wait(30)
            service.start()
        if fault:
            progress.wait(before + int(fault.until * len(records)), SECONDS_PER_ROUND)
            end()
        for sender in sending:
            sender.result(2 * SECONDS_PER_ROUND)


def cut(service: Any, request_id: str) -> DatasetVersion:
    deadline = time.monotonic() + 120
    while True:
        try:
            version: DatasetVersion = service.cut(request_id)
            return version
        except EverloopError as error:
            assert error.kind in (Kind.UNAVAILABLE, Kind.DEADLINE), error
            assert time.monotonic() < deadline, error


def listed_letters(service: Any) -> list[dead_letter_pb2.DeadLetter]:
    found: list[dead_letter_pb2.DeadLetter] = []
    request = dead_letter_pb2.ListDeadLettersRequest(pipeline=NAME, page_size=500)
    while True:
        page = clients.call(service.stub.ListDeadLetters, request, timeout=30)
        found += page.dead_letters
        request.page_token = page.next_page_token
        if not page.next_page_token:
            return found


def test_every_record_is_in_the_versions_once_and_every_bad_one_a_dead_letter_once(
    ingest: Callable[[str], Any], spec: dict[str, Any]
) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"\nseed {seed}")
    dice = random.Random(seed)
    plan = make_plan(dice)
    service = ingest(NAME)
    service.declare(NAME, spec | {"cut": {"rows": 20_000, "age": "1h"}})
    service.start()
    service.ready()
    progress = Progress()
    topic, stream = TopicDoor(service, progress), StreamDoor(service, progress)
    kills = 0
    began = time.monotonic()
    for number, records in enumerate(plan.rounds):
        fault = FAULTS.get(number)
        at = sorted(dice.sample(range(len(records) // 2), 1 if fault else dice.choice((1, 1, 2))))
        kills += len(at)
        print(f"round {number}: {len(records)} records, ingest killed at {at}, {fault or ''}")
        run_round(service, records, (topic, stream), progress, at, fault)
        if number == ROUNDS // 2:
            halfway = cut(service, "halfway")
    topic.close()
    version = cut(service, "last")
    seconds = time.monotonic() - began

    # What came in, as a stock consumer reads it.
    sent = plan.times_sent()
    messages = service.consume(
        service.pipeline.record_topic, lambda found: len(found) >= sent.total()
    )
    arrived = Counter(message.value for message in messages)
    assert arrived.keys() == sent.keys()
    more = {value for value in arrived if arrived[value] != sent[value]}
    assert all(arrived[value] > sent[value] for value in more)
    assert more <= stream.doubtful

    # The versions: each record once, with its last event's value and its label.
    rows = pq.read_table(service.get(version))
    assert rows.num_rows == len(plan.rows) == RECORDS
    found = {
        parcel: (weight, lost)
        for parcel, weight, lost in zip(
            *(rows.column(name).to_pylist() for name in ("parcel", "weight", "lost")), strict=True
        )
    }
    assert found == plan.rows
    ids = pq.read_table(service.get(halfway), columns=["parcel"]).column("parcel")
    assert len(ids) == halfway.rows == pc.count_distinct(ids).as_py()
    messages_of_versions = service.consume(
        "everloop.datasets", lambda found: len(found) >= version.version
    )
    events: list[Any] = [decode(item.value, item.headers) for item in messages_of_versions]
    announced = {event.id: event.data.dataset.version for event in events}
    assert sorted(announced.values()) == list(range(1, version.version + 1))

    # The dead letters: each bad message once, kept on S3 and on the topic.
    origins = {
        f"{message.topic}/{message.partition}/{message.offset}": message.value
        for message in messages
        if message.value in plan.bad
    }
    assert set(origins.values()) == plan.bad
    kept = Counter(letter.id for letter in listed_letters(service))
    assert kept == Counter(list(origins))
    for letter in dice.sample(sorted(origins), 20):
        one = dead_letter_pb2.GetDeadLetterRequest(pipeline=NAME, id=letter)
        answer = clients.call(service.stub.GetDeadLetter, one, timeout=20)
        assert answer.dead_letter.value == origins[letter]

    def by_origin(letters: list[Any]) -> dict[str, bytes]:
        return {dict(item.headers)["everloop-origin"].decode(): item.value for item in letters}

    letters = service.consume(
        service.pipeline.dead_letter_topic, lambda found: len(by_origin(found)) >= len(origins)
    )
    assert by_origin(letters) == origins

    # The books.
    stats = service.stats()
    assert (stats.received, stats.rejected, stats.lag) == (len(messages), len(origins), 0)
    assert stats.accepted + stats.rejected == stats.received
    print(
        f"{sent.total()} records in {seconds:.0f} s: {RECORDS} ids, {dict(plan.injected)}",
        f"ingest killed {kills} times; {'; '.join(fault.name for fault in FAULTS.values())}",
        f"{stream.streams} streams, {stream.unavailable} ended UNAVAILABLE, {stream.repeated} records repeated",
        f"on the topic {len(messages)} messages, {len(messages) - sent.total()} of them repeats without an answer",
        f"{version.git_tag}: {rows.num_rows} rows; accepted {stats.accepted}, rejected {stats.rejected}",
        f"dead letters: {len(plan.bad)} bad records in {len(origins)} messages, {kept.total()} on S3, "
        f"{len(letters)} on the topic, {len(letters) - len(origins)} of them sent twice by the relay",
        sep="\n",
    )
    assert kills >= 10
    assert service.stop() == 0
