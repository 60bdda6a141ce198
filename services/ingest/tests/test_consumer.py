"""The dataset writer against a consumer whose partitions come and go between any two of its calls."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from kafka import TopicPartition
from kafka.errors import IllegalStateError, LogTruncationError, OffsetOutOfRangeError

from everloop_contracts.pipeline import Pipeline
from everloop_ingest.buffers import Limits
from everloop_ingest.consumer import DatasetWriter, _Assignment
from everloop_ingest.domain import RECORD_OVERHEAD_BYTES, Batch
from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.service import Stopper

LIMITS = Limits(
    shard_rows=7,
    shard_bytes=10**9,
    shard_age_seconds=1e-9,
    batch_bytes=10**9,
    buffer_rows=20,
    buffer_bytes=10**9,
    backlog=1,
    workers=1,
)


class Log:
    """One partition's log, the database's position in it, and what was settled.

    Attributes:
        messages: offsets that hold a message; the others hold control records.
        end: offset after the last entry.
        position: in the database.
        settled: offsets of the messages in the order in which they were settled.
        first: what is below has been dropped.
        lost: offsets that were skipped.
    """

    def __init__(self, messages: list[int], end: int) -> None:
        self.messages = messages
        self.end = end
        self.position = 0
        self.settled: list[int] = []
        self.batches: list[Batch] = []
        self.first = 0
        self.lost: list[int] = []

    def skip(self, partition: Any, start: int, end: int) -> bool:
        """The contract of `Settlements.skip`."""
        if start != self.position:
            return False
        self.position = end
        self.lost += range(start, end)
        return True

    def settle(self, batch: Batch) -> bool:
        """The contract of `Settle`."""
        if batch.start != self.position:
            return False
        self.position = batch.end
        self.batches.append(batch)
        self.settled += [message.offset for message in batch.messages]
        return True


class Inline:
    """An executor that works at once."""

    def submit(self, work: Callable[[Batch], bool | None], batch: Batch) -> Future[bool | None]:
        future: Future[bool | None] = Future()
        future.set_result(work(batch))
        return future


class Client:
    """Fake of `KafkaConsumer` with one partition.

    As the real one does on a thread of its own, it may rebalance whenever it is called: `step` is asked first, and
    each answer of True takes the next step of a rebalance.
    """

    def __init__(self, log: Log, partition: TopicPartition, step: Callable[[str], bool]) -> None:
        self.log = log
        self.partition = partition
        self.step = step
        self.offset: int | None = None  # None: not assigned
        self.stopped = False
        self.committed = 0
        self.elsewhere = 0  # messages another member settles while it has the partition
        self.value = b"x"
        self.rebalance = self._rebalance()
        self.stage = ""

    def join(self, writer: DatasetWriter) -> None:
        self.listener = _Assignment(writer, self)
        self.finish_rebalance()

    def finish_rebalance(self) -> None:
        while self.stage != "told":
            self.stage = next(self.rebalance)

    def _rebalance(self) -> Iterator[str]:
        """The order of the real client: told first, then taken; given first, then told."""
        while True:
            self.offset = None
            mine = self.log.position
            rest = [offset for offset in self.log.messages if offset >= mine][: self.elsewhere]
            if rest:
                self.log.settled += rest
                self.log.position = rest[-1] + 1
            yield "taken"
            self.offset, self.stopped = self.committed, False
            yield "given"
            self.listener.on_partitions_assigned({self.partition})
            yield "told"
            self.listener.on_partitions_revoked({self.partition})
            yield "revoked"

    def _called(self, name: str) -> None:
        while self.step(name):
            self.stage = next(self.rebalance)

    def poll(self, timeout_ms: int) -> dict[TopicPartition, list[Any]]:
        self._called("poll")
        if self.offset is None or self.stopped:
            return {}
        first = self.offset
        if first < self.log.first:
            raise OffsetOutOfRangeError({self.partition: first})
        found = [offset for offset in self.log.messages if offset >= first][:5]
        behind = [offset for offset in self.log.messages if found and offset > found[-1]]
        # Control records behind the last message are passed with it only by luck.
        self.offset = found[-1] + 1 if behind or (found and self.log.end % 2) else self.log.end
        self._called("after poll")
        messages = [SimpleNamespace(offset=offset, value=self.value) for offset in found]
        return {self.partition: messages} if messages else {}

    def _here(self) -> None:
        if self.offset is None:
            raise IllegalStateError("Partition is not assigned")

    def position(self, partition: TopicPartition, timeout_ms: int) -> int | None:
        self._called("position")
        self._here()
        return self.offset

    def highwater(self, partition: TopicPartition) -> int:
        self._called("highwater")
        self._here()
        return self.log.end

    def assignment(self) -> set[TopicPartition]:
        return set() if self.offset is None else {self.partition}

    def paused(self) -> set[TopicPartition]:
        return {self.partition} if self.stopped and self.offset is not None else set()

    def pause(self, *partitions: TopicPartition) -> None:
        if partitions:
            if self.offset is None:
                raise KeyError(self.partition)
            self.stopped = True

    def resume(self, *partitions: TopicPartition) -> None:
        self._called("resume")
        if partitions:
            if self.offset is None:
                raise KeyError(self.partition)
            self.stopped = False

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self._called("seek")
        if self.offset is None:
            raise ValueError("Unassigned partition")
        self.offset = offset

    def beginning_offsets(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, self.log.first)

    def end_offsets(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, self.log.end)

    def commit(self, offsets: dict[TopicPartition, Any], timeout_ms: int) -> None:
        self._called("commit")
        if self.offset is not None:
            self.committed = offsets[self.partition].offset


def make_writer(
    pipeline: Pipeline, log: Log, step: Callable[[str], bool]
) -> tuple[DatasetWriter, Client]:
    settlements: Any = SimpleNamespace(
        claim=lambda partition, beginning: log.position, skip=log.skip, backlog=lambda limit: False
    )
    writer = DatasetWriter("", {pipeline.name: pipeline}, settlements, log.settle, LIMITS, "one")
    writer._stopper = Stopper()
    client = Client(log, TopicPartition(pipeline.record_topic, 0), step)
    client.join(writer)
    return writer, client


def turn(writer: DatasetWriter, client: Client) -> None:
    workers: Any = Inline()
    writer._turn(client, workers)


def make_keeper(pipeline: Pipeline, log: Log, turns: int) -> tuple[DatasetWriter, Client]:
    """A writer after some turns that keeps what it reads, until it gets its usual limits."""
    writer, client = make_writer(pipeline, log, lambda name: False)
    writer._limits = replace(LIMITS, shard_rows=1000, shard_age_seconds=1000.0)
    for _ in range(turns):
        turn(writer, client)
    return writer, client


def finish(writer: DatasetWriter, client: Client, log: Log) -> None:
    """Goes on without any more rebalance until all is settled."""
    client.step = lambda name: False
    client.finish_rebalance()
    for _ in range(100):
        turn(writer, client)
        if log.position == log.end:
            return
    raise AssertionError(f"stays at {log.position} of {log.end}")


@pytest.mark.parametrize("moment", ["position", "highwater", "after poll", "resume", "commit"])
def test_a_rebalance_at_any_moment_settles_no_message_twice(
    pipeline: Pipeline, moment: str
) -> None:
    log = Log(list(range(40)), 40)
    steps = iter([False])  # quiet until there is something to confuse

    def step(name: str) -> bool:
        return name == moment and next(steps, False)

    writer, client = make_writer(pipeline, log, step)
    for _ in range(3):
        turn(writer, client)
    client.committed = 2  # Kafka's own offsets lag behind: a commit may fail
    steps = iter([True] * 3)  # revoked, taken and given back, and the writer not told of that yet
    turn(writer, client)
    turn(writer, client)
    finish(writer, client, log)
    assert log.settled == list(range(40))


@pytest.mark.parametrize("seed", range(200))
def test_whatever_the_rebalances_every_message_is_settled_once(
    pipeline: Pipeline, seed: int
) -> None:
    chance = random.Random(seed)
    end = chance.randrange(30, 90)
    messages = [offset for offset in range(end - 3) if chance.random() < 0.8]
    log = Log(messages, end)
    likely = chance.choice([0.02, 0.1, 0.3])
    writer, client = make_writer(pipeline, log, lambda name: chance.random() < likely)
    client.elsewhere = chance.choice([0, 0, 4])
    writer._limits = replace(LIMITS, batch_bytes=chance.choice([10**9, 1100, 1]))
    for _ in range(60):
        turn(writer, client)
        if chance.random() < 0.1:
            client.committed = chance.randrange(log.position + 1)
    finish(writer, client, log)
    assert log.settled == messages


def test_reading_goes_on_where_pressure_and_a_rebalance_coincide(pipeline: Pipeline) -> None:
    log = Log(list(range(60)), 60)
    writer, client = make_writer(pipeline, log, lambda name: False)
    away = True

    class Busy(Inline):
        def submit(self, work: Any, batch: Batch) -> Future[bool | None]:
            return Future() if away else super().submit(work, batch)

    busy: Any = Busy()
    for _ in range(8):
        writer._turn(client, busy)
    assert client.stopped
    assert sum(len(buffer.messages) for buffer in writer._buffers.values()) <= LIMITS.buffer_rows
    away = False
    [(_, _, future)] = writer._running.values()
    future.set_result(False)  # another member was quicker: it is read again
    finish(writer, client, log)
    assert log.settled == list(range(60))


def test_reading_stops_at_the_bytes_that_may_wait_and_goes_on(pipeline: Pipeline) -> None:
    log = Log(list(range(60)), 60)
    writer, client = make_writer(pipeline, log, lambda name: False)
    client.value = b"x" * 100_000
    most = 1_000_000
    writer._limits = replace(LIMITS, buffer_rows=1000, buffer_bytes=most)
    held: Future[bool | None] = Future()
    busy: Any = SimpleNamespace(submit=lambda work, batch: held)
    for _ in range(12):
        writer._turn(client, busy)
    [(batch, running, _)] = writer._running.values()
    size = running + sum(buffer.size for buffer in writer._buffers.values())
    assert client.stopped
    # What one poll brings comes on top.
    assert most <= size < most + 5 * (100_000 + RECORD_OVERHEAD_BYTES)
    held.set_result(log.settle(batch))
    finish(writer, client, log)
    assert log.settled == list(range(60))


@pytest.mark.parametrize(("fit", "most"), [(1.0, 1), (3.0, 3), (3.9, 3), (0.1, 1)])
def test_a_flood_is_settled_in_batches_of_bounded_bytes(
    pipeline: Pipeline, fit: float, most: int
) -> None:
    messages = [offset for offset in range(60) if offset % 4]
    log = Log(messages, 61)
    writer, client = make_writer(pipeline, log, lambda name: False)
    client.value = b"x" * 100_000
    message = 100_000 + RECORD_OVERHEAD_BYTES
    writer._limits = replace(
        LIMITS, buffer_rows=1000, shard_bytes=10**6, batch_bytes=int(fit * message)
    )
    held: list[Future[bool | None]] = []

    class Slow(Inline):
        def submit(self, work: Any, batch: Batch) -> Future[bool | None]:
            held.append(Future())
            return held[0] if len(held) == 1 else super().submit(work, batch)

    slow: Any = Slow()
    for _ in range(12):  # all of it comes while the first batch is not settled
        writer._turn(client, slow)
    [(first, size, _)] = writer._running.values()
    assert (len(held), size) == (1, len(first.messages) * message)
    assert sum(len(buffer.messages) for buffer in writer._buffers.values()) > 10 * most
    held[0].set_result(log.settle(first))
    finish(writer, client, log)
    assert log.settled == messages
    assert max(len(batch.messages) for batch in log.batches) == most
    ends = [batch.end for batch in log.batches]
    assert [batch.start for batch in log.batches] == [0, *ends[:-1]]


def test_a_log_that_was_cut_back_is_read_again_from_the_database(pipeline: Pipeline) -> None:
    log = Log(list(range(10)), 11)
    writer, client = make_keeper(pipeline, log, turns=3)
    client.offset = 3
    turn(writer, client)
    writer._limits = LIMITS
    finish(writer, client, log)
    assert log.settled == list(range(10))


def test_a_truncation_that_the_client_tells_is_read_again_as_well(pipeline: Pipeline) -> None:
    log = Log(list(range(10)), 11)
    writer, client = make_keeper(pipeline, log, turns=3)
    real = client.position

    def position(partition: TopicPartition, timeout_ms: int) -> int | None:
        client.position = real  # type: ignore[method-assign]
        raise LogTruncationError({partition: None})

    client.position = position  # type: ignore[method-assign]
    turn(writer, client)
    writer._limits = LIMITS
    finish(writer, client, log)
    assert log.settled == list(range(10))


def test_what_was_read_before_the_log_dropped_it_is_settled(pipeline: Pipeline) -> None:
    log = Log(list(range(30)), 30)
    # It is put at the database's position, then reads five.
    writer, client = make_keeper(pipeline, log, turns=2)
    log.first = 20
    for _ in range(3):
        turn(writer, client)
    assert log.settled == list(range(5))
    assert log.lost == list(range(5, 20))
    writer._limits = LIMITS
    finish(writer, client, log)
    assert log.settled == [*range(5), *range(20, 30)]


@pytest.mark.parametrize("seed", range(100))
def test_whatever_the_log_drops_is_settled_or_counted_and_never_both(
    pipeline: Pipeline, seed: int
) -> None:
    chance = random.Random(seed)
    end = chance.randrange(60, 200)
    messages = [offset for offset in range(end - 3) if chance.random() < 0.8]
    log = Log(messages, end)
    likely = chance.choice([0.0, 0.0, 0.1])
    writer, client = make_writer(pipeline, log, lambda name: chance.random() < likely)
    for _ in range(40):
        turn(writer, client)
        if chance.random() < 0.2:
            log.first = min(end, log.first + chance.randrange(40))
    finish(writer, client, log)
    assert len(log.lost) == len(set(log.lost))
    assert sorted({*log.settled} | {*log.lost} & {*messages}) == messages
    assert not {*log.settled} & {*log.lost}
    assert log.settled == sorted(set(log.settled))


@pytest.mark.parametrize("question", ["claim", "backlog"])
def test_a_database_that_is_away_does_not_end_the_writer(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, question: str
) -> None:
    log = Log([0, 1], 2)
    writer, client = make_writer(pipeline, log, lambda name: False)
    monkeypatch.setattr("everloop_ingest.consumer._OUTAGE_SECONDS", 0.0)
    real = getattr(writer._settlements, question)
    outages = iter([True, True])
    workers: Any = Inline()

    def fragile(*arguments: Any) -> Any:
        if next(outages, False):
            raise EverloopError(Kind.UNAVAILABLE, "DATABASE_UNAVAILABLE", "away")
        return real(*arguments)

    monkeypatch.setattr(writer._settlements, question, fragile)
    for _ in range(5):
        writer._turn_or_wait(client, workers)
    assert log.settled == [0, 1]


def test_a_batch_waits_through_an_outage_and_no_longer_than_the_service(pipeline: Pipeline) -> None:
    log = Log([0], 1)
    writer, client = make_writer(pipeline, log, lambda name: False)
    outages = iter([True, False])

    def settle(batch: Batch) -> bool:
        if next(outages, True):
            raise EverloopError(Kind.UNAVAILABLE, "OBJECT_STORE_UNAVAILABLE", "away")
        return log.settle(batch)

    writer._settle = settle
    for _ in range(3):
        turn(writer, client)
    assert log.settled == [0]
    writer._stopper.stop()
    assert writer._persist(Batch(pipeline.name, None, 1, 1, [])) is None  # type: ignore[arg-type]
