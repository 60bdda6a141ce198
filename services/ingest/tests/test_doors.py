"""PushRecords and the other calls, through the servicer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, cast

import pytest
from confluent_kafka import KafkaError, KafkaException, Producer

from everloop_contracts.pipeline import Pipeline
from everloop_contracts.stubs.everloop.ingest.v1 import dead_letter_pb2
from everloop_contracts.stubs.everloop.ingest.v1 import ingest_pb2 as pb
from everloop_contracts.stubs.everloop.ingest.v1.dataset_pb2 import DatasetVersion
from everloop_ingest.adapters import kafka as adapter
from everloop_ingest.adapters.kafka import TopicEnds, TopicProducer
from everloop_ingest.domain import Reason
from everloop_ingest.push import Push
from everloop_ingest.servicer import IngestServicer
from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.service import Stopper

Make = Callable[..., bytes]


class Context:
    """The part of a gRPC context that is used."""

    def __init__(self, seconds: float | None = 10.0) -> None:
        self.seconds = seconds

    def time_remaining(self) -> float | None:
        return self.seconds


@pytest.fixture
def door(world: Any, sink: Any) -> IngestServicer:
    servicer: IngestServicer = world.servicer(sink)
    return servicer


CONTEXT: Any = Context()


def test_every_record_is_answered_and_every_record_is_on_the_topic(
    door: IngestServicer, sink: Any, make_record: Make
) -> None:
    records = [
        make_record("a"),
        make_record("b", weight=-1),
        b"{",
        b"x" * 9000,
        make_record("c", zone=...),
        b'{"parcel": 5}',
    ]
    answer = door.PushRecords(pb.PushRecordsRequest(pipeline="parcels", records=records), CONTEXT)
    assert answer.accepted == 2
    assert [(r.accepted, r.reason, r.field) for r in answer.results] == [
        (True, "", ""),
        (False, "OUT_OF_RANGE", "weight"),
        (False, "MALFORMED_JSON", ""),
        (False, "RECORD_TOO_LARGE", ""),
        (True, "", ""),
        (False, "MISSING_FIELD", "sent"),
    ]
    assert [key for key, _ in sink.sent] == [b"a", b"b", None, None, b"c", None]
    # What is too large for the topic goes as far as the writer needs to see that it is.
    assert [value for _, value in sink.sent] == [*records[:3], b"x" * 4097, *records[4:]]


def test_pushed_records_are_in_the_books_once(
    door: IngestServicer, world: Any, sink: Any, make_record: Make
) -> None:
    records = [make_record("a"), b"{", b"x" * 9000]
    door.PushRecords(pb.PushRecordsRequest(pipeline="parcels", records=records), CONTEXT)
    world.send(0, *(value for _, value in sink.sent))
    stats = pb.GetPipelineStatsRequest(pipeline="parcels")
    assert door.GetPipelineStats(stats, CONTEXT).lag == 3
    world.settle_all()
    answer = door.GetPipelineStats(stats, CONTEXT)
    assert (answer.received, answer.accepted, answer.rejected, answer.lag) == (3, 1, 2, 0)
    assert dict(answer.rejected_by_reason) == {"MALFORMED_JSON": 1, "RECORD_TOO_LARGE": 1}


def test_nothing_to_push_is_no_error(door: IngestServicer) -> None:
    answer = door.PushRecords(pb.PushRecordsRequest(pipeline="parcels"), CONTEXT)
    assert (answer.accepted, len(answer.results)) == (0, 0)


def test_a_broker_that_is_away_fails_the_call(
    door: IngestServicer, sink: Any, make_record: Make
) -> None:
    sink.error = EverloopError(Kind.UNAVAILABLE, "BROKER_UNAVAILABLE", "away")
    request = pb.PushRecordsRequest(pipeline="parcels", records=[make_record("a")])
    with pytest.raises(EverloopError) as caught:
        door.PushRecords(request, CONTEXT)
    assert caught.value.kind is Kind.UNAVAILABLE


def test_a_repeated_push_returns_the_first_answer_and_adds_nothing(
    door: IngestServicer, world: Any, sink: Any, make_record: Make
) -> None:
    records = [make_record("a"), b"{", make_record("b", weight=-1)]
    request = pb.PushRecordsRequest(pipeline="parcels", records=records, request_id="p1")
    first = door.PushRecords(request, CONTEXT)
    assert (first.accepted, len(sink.sent)) == (1, 3)
    assert first.results[2].field == "weight"
    sink.error = EverloopError(Kind.UNAVAILABLE, "BROKER_UNAVAILABLE", "away")
    world.restart()
    again = world.servicer(sink)
    for servicer in (door, again):
        assert servicer.PushRecords(request, CONTEXT) == first
    assert len(sink.sent) == 3


def test_a_push_without_an_id_or_with_another_one_is_a_new_one(
    door: IngestServicer, sink: Any, make_record: Make
) -> None:
    for request_id in ("", "", "p1", "p2"):
        door.PushRecords(
            pb.PushRecordsRequest(
                pipeline="parcels", records=[make_record("a")], request_id=request_id
            ),
            CONTEXT,
        )
    assert len(sink.sent) == 4


@pytest.mark.parametrize("other", [[b"ab", b"d"], [b"a", b"bc"], [b"abc"], []])
def test_an_id_that_comes_again_with_other_records_is_a_conflict(
    door: IngestServicer, sink: Any, other: list[bytes]
) -> None:
    for records in ([b"ab", b"c"], other):
        request = pb.PushRecordsRequest(pipeline="parcels", records=records, request_id="p1")
        if records is other:
            with pytest.raises(EverloopError) as caught:
                door.PushRecords(request, CONTEXT)
            assert (caught.value.kind, caught.value.reason) == (Kind.CONFLICT, "REQUEST_ID_REUSED")
        else:
            door.PushRecords(request, CONTEXT)
    assert [value for _, value in sink.sent] == [b"ab", b"c"]


@pytest.mark.parametrize("where", ["broker", "database"])
def test_a_push_that_ended_without_an_answer_is_sent_again(
    door: IngestServicer,
    world: Any,
    sink: Any,
    make_record: Make,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    request = pb.PushRecordsRequest(pipeline="parcels", records=[make_record("a")], request_id="p1")
    away = EverloopError(Kind.UNAVAILABLE, "AWAY", "away")

    def no_answer(*arguments: Any) -> Any:
        raise away

    if where == "broker":
        sink.error = away
    else:
        monkeypatch.setattr(world.requests, "answer", no_answer)
    with pytest.raises(EverloopError) as caught:
        door.PushRecords(request, CONTEXT)
    assert caught.value.kind is Kind.UNAVAILABLE
    sink.error = None
    monkeypatch.undo()
    assert door.PushRecords(request, CONTEXT).accepted == 1
    assert len(sink.sent) == (1 if where == "broker" else 2)
    # What is twice on the topic is once in the version.
    world.send(0, *(value for _, value in sink.sent))
    assert world.cut(world.pipeline, "r", 5.0).rows.rows == 1


@pytest.mark.parametrize("same", [True, False])
def test_of_pushes_that_race_with_one_id_the_first_answer_counts(
    door: IngestServicer,
    sink: Any,
    make_record: Make,
    monkeypatch: pytest.MonkeyPatch,
    same: bool,
) -> None:
    def request(*records: bytes) -> pb.PushRecordsRequest:
        return pb.PushRecordsRequest(pipeline="parcels", records=records, request_id="p1")

    real = sink.begin
    winner = request(b"{")
    loser = winner if same else request(make_record("a"))

    def overtaken(*arguments: Any) -> Any:
        monkeypatch.setattr(sink, "begin", real)
        assert door.PushRecords(winner, CONTEXT).accepted == 0
        return real(*arguments)

    monkeypatch.setattr(sink, "begin", overtaken)
    if same:
        assert door.PushRecords(loser, CONTEXT).accepted == 0
    else:
        with pytest.raises(EverloopError) as caught:
            door.PushRecords(loser, CONTEXT)
        assert caught.value.reason == "REQUEST_ID_REUSED"


def test_versions_are_listed_newest_first_by_pages(
    door: IngestServicer, world: Any, make_record: Make
) -> None:
    for number in range(5):
        world.send(0, make_record(f"p{number}"))
        door.CutVersion(pb.CutVersionRequest(pipeline="parcels", request_id=f"r{number}"), CONTEXT)
    found, token, pages = [], "", 0
    while True:
        request = pb.ListDatasetVersionsRequest(pipeline="parcels", page_size=2, page_token=token)
        page = door.ListDatasetVersions(request, CONTEXT)
        found += [dataset.version for dataset in page.datasets]
        token, pages = page.next_page_token, pages + 1
        if not token:
            break
    assert (found, pages) == ([5, 4, 3, 2, 1], 3)
    newest = door.GetDatasetVersion(pb.GetDatasetVersionRequest(pipeline="parcels"), CONTEXT)
    assert newest.dataset.version == 5
    assert newest.dataset.data.path == "parcels/rows"
    assert [item.path for item in newest.dataset.objects] == [
        f"parcels/rows/part-0000{number}.parquet" for number in range(2)
    ]
    assert not any(dataset.objects for dataset in page.datasets)
    second = pb.GetDatasetVersionRequest(pipeline="parcels", version=2)
    assert door.GetDatasetVersion(second, CONTEXT).dataset.rows == 2


def test_a_version_that_failed_says_why(
    door: IngestServicer, world: Any, make_record: Make
) -> None:
    world.send(0, make_record("a"))
    world.settle_all()
    for shard in world.bucket.rglob("*.parquet"):
        shard.unlink()
    with pytest.raises(EverloopError):
        door.CutVersion(pb.CutVersionRequest(pipeline="parcels", request_id="r"), CONTEXT)
    one = pb.GetDatasetVersionRequest(pipeline="parcels", version=1)
    [listed] = door.ListDatasetVersions(
        pb.ListDatasetVersionsRequest(pipeline="parcels"), CONTEXT
    ).datasets
    assert listed == door.GetDatasetVersion(one, CONTEXT).dataset
    assert listed.state == DatasetVersion.STATE_FAILED
    assert listed.error.startswith("the object store has lost 1 of 1 shards: parcels/shards/")
    assert (listed.git_tag, len(listed.objects)) == ("", 0)


@pytest.mark.parametrize(
    ("method", "request_message", "kind", "reason"),
    [
        ("PushRecords", pb.PushRecordsRequest(pipeline="x"), Kind.NOT_FOUND, "PIPELINE_NOT_FOUND"),
        ("CutVersion", pb.CutVersionRequest(pipeline="x"), Kind.NOT_FOUND, "PIPELINE_NOT_FOUND"),
        (
            "CutVersion",
            pb.CutVersionRequest(pipeline="parcels"),
            Kind.INVALID,
            "INVALID_REQUEST_ID",
        ),
        (
            "GetDatasetVersion",
            pb.GetDatasetVersionRequest(pipeline="parcels"),
            Kind.NOT_FOUND,
            "DATASET_VERSION_NOT_FOUND",
        ),
        (
            "PushRecords",
            pb.PushRecordsRequest(pipeline="parcels", request_id="r" * 201),
            Kind.INVALID,
            "INVALID_REQUEST_ID",
        ),
        *(
            (
                "ListDatasetVersions",
                pb.ListDatasetVersionsRequest(pipeline="parcels", page_token=token),
                Kind.INVALID,
                "INVALID_PAGE",
            )
            for token in ("x", "9" * 20, "9" * 10_000, "-1", "1.5", " 1", "\u0663", "\u00b2", "0x1")
        ),
        (
            "ListDatasetVersions",
            pb.ListDatasetVersionsRequest(pipeline="parcels", page_size=-1),
            Kind.INVALID,
            "INVALID_PAGE",
        ),
    ],
)
def test_what_cannot_be_done_says_why(
    door: IngestServicer, method: str, request_message: Any, kind: Kind, reason: str
) -> None:
    with pytest.raises(EverloopError) as caught:
        getattr(door, method)(request_message, CONTEXT)
    assert (caught.value.kind, caught.value.reason) == (kind, reason)


class Broker:
    """A Kafka client that reports what has become of records when the test says so."""

    def __init__(self) -> None:
        self.reports: list[Callable[[KafkaError | None, object], None]] = []

    def produce(self, topic: str, value: bytes, key: bytes | None, **record: Any) -> None:
        if value == b"refused":
            raise KafkaException(KafkaError(KafkaError._FATAL))
        self.reports.append(record["on_delivery"])


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
def producer(broker: Broker) -> TopicProducer:
    found = TopicProducer("unused:1", ["t"], max_bytes=2000, timeout_seconds=0.05)
    found._client = cast(Producer, broker)
    return found


GIVEN_UP = KafkaError(KafkaError._MSG_TIMED_OUT)


def test_bytes_under_way_are_bounded_until_the_broker_has_them(
    producer: TopicProducer, broker: Broker
) -> None:
    first = producer.begin("t", [(None, b"x" * 400), (None, b"x" * 400)], 0)
    with pytest.raises(EverloopError) as caught:
        first.wait(1.0)
    assert caught.value.kind is Kind.UNAVAILABLE
    for error in (None, GIVEN_UP):
        for patience in (0.0, 0.01):
            with pytest.raises(EverloopError) as caught:
                producer.begin("t", [(None, b"")], 0, patience)
            assert (caught.value.kind, caught.value.reason) == (Kind.EXHAUSTED, "TOO_MANY_BYTES")
        broker.reports.pop()(error, None)
    producer.begin("t", [(None, b"x" * 1000)], 0)


def test_the_patient_are_served_when_there_is_room(producer: TopicProducer, broker: Broker) -> None:
    producer.begin("t", [(None, b"x" * 1400)], 0)
    waiting = threading.Thread(target=producer.begin, args=("t", [(None, b"y" * 400)], 0, 30.0))
    waiting.start()
    assert len(broker.reports) == 1
    broker.reports[0](GIVEN_UP, None)
    waiting.join(30)
    assert len(broker.reports) == 2


def test_one_record_that_is_not_there_fails_those_it_came_with(
    producer: TopicProducer, broker: Broker
) -> None:
    delivery = producer.begin("t", [(None, b"a"), (None, b"b")], 0)
    broker.reports[0](GIVEN_UP, None)
    broker.reports[1](None, None)
    with pytest.raises(EverloopError) as caught:
        delivery.wait(1.0)
    assert caught.value.kind is Kind.UNAVAILABLE


def test_what_the_client_refuses_halfway_gives_its_bytes_back(
    producer: TopicProducer, broker: Broker
) -> None:
    with pytest.raises(EverloopError) as caught:
        producer.begin("t", [(None, b"a"), (None, b"refused"), (None, b"b")], 0)
    assert caught.value.kind is Kind.UNAVAILABLE
    [report] = broker.reports
    report(None, None)
    producer.begin("t", [(None, b"x" * 2000)], 0)


class BrokenOnce(Broker):
    """A Kafka client of which the first one fails for good; it reports when it is flushed."""

    made: ClassVar[list[BrokenOnce]] = []

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__()
        self.failed = options["error_cb"]
        self.made.append(self)

    def list_topics(self, topic: str, timeout: float) -> None:
        return

    def poll(self, timeout: float) -> None:
        if self is self.made[0] and self.reports:
            self.failed(KafkaError(KafkaError._FATAL))

    def purge(self) -> None:
        return

    def flush(self, timeout: float) -> None:
        while self.reports:
            self.reports.pop()(KafkaError(KafkaError._PURGE_QUEUE), None)


def test_a_client_that_failed_for_good_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "wait_for_broker", lambda *_: None)
    monkeypatch.setattr(adapter, "fast_producer", lambda _, options: BrokenOnce(options))
    producer = TopicProducer("unused:1", ["t"], max_bytes=2000, timeout_seconds=10.0)
    producer.start(Stopper())
    delivery = producer.begin("t", [(None, b"lost")], 0)
    with pytest.raises(EverloopError) as caught:
        delivery.wait(10.0)
    assert caught.value.kind is Kind.UNAVAILABLE
    producer.begin("t", [(None, b"x" * 2000)], 0)
    producer.stop()
    assert len(BrokenOnce.made) == 2


def test_a_broker_that_does_not_answer_is_an_outage_in_time() -> None:
    began = time.monotonic()
    away = TopicProducer("127.0.0.1:9", ["t"], max_bytes=100, timeout_seconds=0.5)
    for attempt in (
        lambda: away.start(Stopper()),
        lambda: away.begin("t", [(None, b"x")], 0),
        lambda: TopicEnds("127.0.0.1:9").end_offsets("t", 0.5),
    ):
        with pytest.raises(EverloopError) as caught:
            attempt()
        assert caught.value.kind is Kind.UNAVAILABLE
    assert time.monotonic() - began < 5


def test_both_doors_judge_by_the_same_contract_and_the_same_clock(
    world: Any, sink: Any, spec: dict[str, Any], make_record: Make
) -> None:
    section = spec["schema"] | {
        "freshness": {"max_age": "1h"},
        "rules": [{"name": "light", "check": "weight <= 9", "when": "zone == 'B'"}],
    }
    world.pipeline = Pipeline.model_validate(spec | {"schema": section})
    world.restart()
    now = datetime.now(UTC)
    border = now - timedelta(hours=1)
    records = [
        make_record("a", sent=now.isoformat()),
        make_record("b", sent=now.isoformat(), zone="B", weight=10),
        *(
            make_record(f"c{n}", sent=(border + timedelta(milliseconds=n)).isoformat())
            for n in range(-20, 21)
        ),
    ]
    push = Push({world.pipeline.name: world.pipeline}, sink, world.requests, 4096)
    answered = {item.row: item for item in push(world.pipeline, records, "", 5.0)}
    assert answered[1].reason == Reason.RULE_BROKEN
    assert {item.reason for item in answered.values()} == {Reason.RULE_BROKEN, Reason.TOO_OLD}
    # The topic keeps the time that the door has judged by: the writer comes to the same result, whenever it reads.
    for (_, value), timestamp in zip(sink.sent, sink.timestamps, strict=True):
        world.send(0, value, timestamp=timestamp)
    world.settle_all()
    letters = [(headers["everloop-reason"], value) for value, headers in world.dead_letters()]
    assert letters == [(str(answered[row].reason), records[row]) for row in sorted(answered)]


def test_dead_letters_are_listed_shown_and_replayed_over_grpc(
    door: IngestServicer, world: Any, make_record: Make
) -> None:
    world.send(0, b"{", make_record("a", weight=-1))
    world.settle_all()
    listed = door.ListDeadLetters(
        dead_letter_pb2.ListDeadLettersRequest(pipeline="parcels", page_size=1), CONTEXT
    )
    [first] = listed.dead_letters
    assert (first.reason, first.field, first.value) == ("OUT_OF_RANGE", "weight", b"")
    rest = door.ListDeadLetters(
        dead_letter_pb2.ListDeadLettersRequest(
            pipeline="parcels", page_token=listed.next_page_token
        ),
        CONTEXT,
    )
    [second] = rest.dead_letters
    assert (second.reason, rest.next_page_token) == ("MALFORMED_JSON", "")
    get = dead_letter_pb2.GetDeadLetterRequest(pipeline="parcels", id=second.id)
    assert door.GetDeadLetter(get, CONTEXT).dead_letter.value == b"{"
    again = dead_letter_pb2.ReplayDeadLettersRequest(
        pipeline="parcels",
        request_id="r",
        filter=dead_letter_pb2.DeadLetterFilter(reason="OUT_OF_RANGE"),
    )
    for _ in range(2):
        answer = door.ReplayDeadLetters(again, CONTEXT)
        assert (answer.replayed, answer.skipped) == (1, 0)
    assert world.relay(1) == 1
    get.id = first.id
    assert door.GetDeadLetter(get, CONTEXT).dead_letter.replay_request_id == "r"


def test_a_replay_needs_a_request_id(door: IngestServicer) -> None:
    with pytest.raises(EverloopError) as caught:
        door.ReplayDeadLetters(
            dead_letter_pb2.ReplayDeadLettersRequest(pipeline="parcels"), CONTEXT
        )
    assert caught.value.reason == "INVALID_REQUEST_ID"
