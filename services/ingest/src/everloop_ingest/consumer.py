"""Kafka in, the dataset writer: reads the record topics and settles them batch by batch.

One thread owns the consumer and only buffers, so that it keeps polling whatever a batch takes; a few workers settle.
The position in the database is the truth: on assignment the consumer seeks to it, and Kafka's own committed offsets
only serve lag tools.

Kafka's client takes partitions away and gives them back on a thread of its own, between any two of our calls. Each
assignment therefore has a number, and a buffer carries the number of the one that it was read under: what the client
says of a partition counts only if that number is still the current one after it was said.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress

from kafka import ConsumerRebalanceListener, KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.errors import (
    IllegalStateError,
    KafkaError,
    LogTruncationError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
)

from everloop_contracts.pipeline import Pipeline
from everloop_ingest import metrics
from everloop_ingest.adapters.store.settlements import Settlements
from everloop_ingest.buffers import Buffer, Limits, blocked
from everloop_ingest.domain import Batch, Message, Partition
from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.kafka import wait_for_broker
from everloop_runtime.service import Component, Stopper

__all__ = ["GROUP", "DatasetWriter"]

log = logging.getLogger(__name__)

GROUP = "everloop.ingest"
_POLL_MS = 200
_OUTAGE_SECONDS = 1.0


class DatasetWriter(Component):
    """Consumes the record topics of all pipelines."""

    name = "dataset writer"

    def __init__(
        self,
        bootstrap: str,
        pipelines: Mapping[str, Pipeline],
        settlements: Settlements,
        settle: Callable[[Batch], bool],
        limits: Limits,
        instance: str,
    ) -> None:
        """Takes the broker, the pipelines by name, the database, what settles a batch, and the limits.

        `instance` names this process among those that share the work; the same after a restart.
        """
        self._instance = instance
        self._bootstrap = bootstrap
        self._pipelines = {pipeline.record_topic: name for name, pipeline in pipelines.items()}
        self._settlements = settlements
        self._settle = settle
        self._limits = limits
        self._wanted: set[str] = set()  # topics to flush now
        self._assigned: dict[TopicPartition, int] = {}  # what is ours, and since which assignment
        self._assignments = itertools.count()
        # A partition of ours without one is still to be put at the database's position.
        self._buffers: dict[TopicPartition, Buffer] = {}
        self._running: dict[TopicPartition, tuple[Batch, int, Future[bool | None]]] = {}
        self._lock = threading.Lock()
        self._blocked = False

    def flush(self, topic: str) -> None:
        """Asks to settle now what is held of a topic; see `ports.Writer`."""
        with self._lock:
            self._wanted.add(topic)

    def start(self, stopper: Stopper) -> None:
        """Starts the thread."""
        self._stopper = stopper
        self._thread = stopper.thread(self.name, self._run)

    def stop(self) -> None:
        """Settles what is buffered, as far as it goes at once, and ends."""
        self._thread.join(timeout=30)

    def _run(self) -> None:
        wait_for_broker(self._bootstrap, self._stopper)
        if not self._pipelines:
            return
        for name in self._pipelines.values():
            metrics.LOST.labels(name)  # an alert sees the first rise only from a zero
        consumer = KafkaConsumer(
            bootstrap_servers=self._bootstrap.split(","),
            group_id=GROUP,
            # A process that was killed gets its partitions back at once, not when its old session has expired.
            group_instance_id=self._instance,
            # Only what moves to another process is taken away; the rest stays where it is, with what is buffered of it.
            partition_assignment_strategy=[CooperativeStickyAssignor],
            enable_auto_commit=False,
            auto_offset_reset="none",  # nothing is skipped unsaid
            isolation_level="read_committed",
            max_poll_records=5_000,
            session_timeout_ms=10_000,
            heartbeat_interval_ms=2_000,
            reconnect_backoff_max_ms=1_000,
            metadata_max_age_ms=30_000,
        )
        # A member that does not know a topic yet when it assigns partitions gives those of it to nobody.
        with suppress(KafkaError):
            for topic in self._pipelines:
                consumer.partitions_for_topic(topic)
        consumer.subscribe(topics=sorted(self._pipelines), listener=_Assignment(self, consumer))
        workers = ThreadPoolExecutor(self._limits.workers, thread_name_prefix="settle")
        try:
            while not self._stopper.stopping:
                self._turn_or_wait(consumer, workers)
            for partition in list(self._buffers):
                self._hand_over(partition, workers)
            wait([future for _, _, future in self._running.values()], timeout=20)
            self._collect(consumer)
        finally:
            workers.shutdown(wait=False, cancel_futures=True)
            consumer.close()

    def _turn_or_wait(self, consumer: KafkaConsumer, workers: ThreadPoolExecutor) -> None:
        try:
            self._turn(consumer, workers)
        except EverloopError as error:  # the next turn does what this one has left
            if error.kind is not Kind.UNAVAILABLE:
                raise
            log.warning("the writer waits: %s", error)
            self._stopper.wait(_OUTAGE_SECONDS)

    def _turn(self, consumer: KafkaConsumer, workers: ThreadPoolExecutor) -> None:
        try:
            for partition, messages in consumer.poll(timeout_ms=_POLL_MS).items():
                self._take(partition, messages)
            self._follow(consumer)
        except NoOffsetForPartitionError:
            pass  # assigned a moment ago: what comes next puts it at the database's position
        except OffsetOutOfRangeError as error:
            self._leave(consumer, error.args[0])
        except LogTruncationError as error:
            self._read_again(error.divergent_offsets)
        self._collect(consumer)
        self._settle_in(consumer)
        self._hand_over_due(workers)
        self._press_back(consumer)

    def assigned(self, partitions: set[TopicPartition]) -> None:
        """Notes partitions that are to start at the database's position; called by the consumer's own thread."""
        with self._lock:
            self._assigned |= dict.fromkeys(partitions, next(self._assignments))

    def revoked(self, partitions: set[TopicPartition]) -> None:
        """Notes partitions that are going, before they are gone; called by the consumer's own thread."""
        with self._lock:
            for partition in partitions:
                self._assigned.pop(partition, None)

    def _current(self, partition: TopicPartition) -> Buffer | None:
        """The partition's buffer, if it is still ours by the assignment that the buffer was read under."""
        buffer = self._buffers.get(partition)
        with self._lock:
            same = buffer is not None and self._assigned.get(partition) == buffer.assignment
        return buffer if same else None

    def _take(self, partition: TopicPartition, messages: Sequence[Message]) -> None:
        buffer = self._current(partition)
        if buffer is None:
            return  # read from wherever the client stood; they come again from the database's position
        if messages[0].offset < buffer.end:
            self._read_again([partition])
            return
        buffer.add(messages, time.monotonic())

    def _leave(self, consumer: KafkaConsumer, partitions: Iterable[TopicPartition]) -> None:
        """Stops reading where the log has nothing any more, which the client says again until it is sent elsewhere."""
        try:
            first = consumer.beginning_offsets(list(partitions))
            consumer.pause(*partitions)
        except (KafkaError, KeyError) as error:
            log.warning("cannot ask how far the topics reach: %s", error)
            return
        for partition in partitions:
            buffer = self._current(partition)
            if buffer is None:
                continue
            if first[partition] > buffer.end:
                buffer.adrift = True
            else:
                self._read_again([partition])

    def _read_again(self, partitions: Iterable[TopicPartition]) -> None:
        """Forgets what was read of partitions whose log has become shorter; they come from the database's position."""
        for partition in partitions:
            log.error("%s was cut back, reads again", partition)
            self._buffers.pop(partition, None)

    def _settle_in(self, consumer: KafkaConsumer) -> None:
        """Seeks freshly assigned partitions to the database's position and forgets what has gone."""
        with self._lock:
            assigned = dict(self._assigned)
        for partition, buffer in list(self._buffers.items()):
            if assigned.get(partition) != buffer.assignment:
                del self._buffers[partition]
        # What is being settled moves the position: wait for it rather than read it again.
        ready = sorted(assigned.keys() - self._buffers.keys() - self._running.keys())
        if not ready:
            return
        try:
            first, end = consumer.beginning_offsets(ready), consumer.end_offsets(ready)
        except KafkaError as error:
            log.warning("cannot ask how far the topics reach: %s", error)
            return
        for partition in ready:
            position = self._position(partition, first[partition], end[partition])
            with suppress(ValueError, KeyError):  # it has gone
                consumer.seek(partition, position)
                self._buffers[partition] = Buffer(
                    assigned[partition], position, position, time.monotonic()
                )
                log.info("%s/%d from offset %d", partition.topic, partition.partition, position)

    def _position(self, partition: TopicPartition, first: int, end: int) -> int:
        mine = Partition(partition.topic, partition.partition)
        position = self._settlements.claim(mine, first)
        if position > end:
            raise EverloopError(
                Kind.PRECONDITION,
                "TOPIC_BEHIND_DATABASE",
                f"{partition.topic}/{partition.partition} ends at {end}, but {position} messages of it are in the "
                "database: the topic was made anew or lost its end; restore it, or delete its row in `positions`",
            )
        if position < first and self._settlements.skip(mine, position, first):
            metrics.LOST.labels(self._pipelines[partition.topic]).inc(first - position)
            log.error(
                "%s/%d has dropped offsets %d to %d, %d messages at most, before they were settled: they are lost",
                *(partition.topic, partition.partition, position, first - 1, first - position),
            )
            return first
        return position

    def _follow(self, consumer: KafkaConsumer) -> None:
        """Notes how far each partition is read, which control records may put beyond its last message, and the lag."""
        lag: dict[str, int] = defaultdict(int)
        for partition, buffer in self._buffers.items():
            try:
                position = consumer.position(partition, timeout_ms=1000) or 0
                highwater = consumer.highwater(partition) or 0
            except (IllegalStateError, KeyError):
                continue  # it has gone
            # Asked first, checked then: after a rebalance the client may stand anywhere.
            if self._current(partition) is None:
                continue
            buffer.end = max(buffer.end, position)
            running = self._running.get(partition)
            settled = running[0].start if running else buffer.start
            lag[self._pipelines[partition.topic]] += max(0, highwater - settled)
        for pipeline, messages in lag.items():
            metrics.LAG.labels(pipeline).set(messages)

    def _hand_over_due(self, workers: ThreadPoolExecutor) -> None:
        with self._lock:
            wanted, self._wanted = self._wanted, set()
        ready, now = self._buffers.keys() - self._running.keys(), time.monotonic()
        due = [p for p in ready if p.topic in wanted or self._buffers[p].due(self._limits, now)]
        if due and self._settlements.backlog(self._limits.backlog):
            return  # the next turn looks again; who wanted a flush asks again
        for partition in due:
            self._hand_over(partition, workers)

    def _hand_over(self, partition: TopicPartition, workers: ThreadPoolExecutor) -> None:
        buffer = self._buffers[partition]
        if partition in self._running:
            return
        rest = buffer.split(self._limits.batch_bytes, time.monotonic())
        if buffer.adrift and not rest.messages:
            del self._buffers[partition]
        else:
            self._buffers[partition] = rest
        if buffer.end == buffer.start:
            return
        batch = Batch(
            self._pipelines[partition.topic],
            Partition(partition.topic, partition.partition),
            buffer.start,
            buffer.end,
            buffer.messages,
        )
        future = workers.submit(self._persist, batch)
        self._running[partition] = (batch, buffer.size, future)

    def _persist(self, batch: Batch) -> bool | None:
        """Settles a batch, through outages; None where the service stops before it is settled."""
        delay = 0.2
        while True:
            try:
                return self._settle(batch)
            except EverloopError as error:
                if error.kind is not Kind.UNAVAILABLE:
                    raise
                log.warning("%s waits at offset %d: %s", batch.partition, batch.start, error)
            if self._stopper.wait(delay):
                return None
            delay = min(2 * delay, 10.0)

    def _collect(self, consumer: KafkaConsumer) -> None:
        """Takes in what the workers have done: commits for lag tools, reads again where it was not ours to settle."""
        commits = {}
        for partition, (batch, _, future) in list(self._running.items()):
            if not future.done():
                continue
            del self._running[partition]
            settled = future.result()
            if settled:
                commits[partition] = OffsetAndMetadata(batch.end, "", -1)
            elif settled is False:
                log.warning(
                    "%s is not at %d in the database, reads again", batch.partition, batch.start
                )
                self._buffers.pop(partition, None)
        held = [p for p in commits if p in consumer.assignment()]
        if not held:
            return
        try:
            consumer.commit({p: commits[p] for p in held}, timeout_ms=2000)
        except KafkaError as error:
            log.info("offsets are not committed to Kafka this time: %s", error)

    def _press_back(self, consumer: KafkaConsumer) -> None:
        """Stops reading while too much waits in memory, and goes on at half of it."""
        size = sum(b.size for b in self._buffers.values()) + sum(
            s for _, s, _ in self._running.values()
        )
        rows = sum(len(b.messages) for b in self._buffers.values())
        rows += sum(len(batch.messages) for batch, _, _ in self._running.values())
        metrics.BUFFERED_BYTES.set(size)
        self._blocked = blocked(self._blocked, rows, size, self._limits)
        paused = consumer.paused()
        with suppress(KeyError):  # one has gone, the next turn sees to the others
            if self._blocked:
                consumer.pause(*(self._buffers.keys() - paused))
            else:
                on_log = {p for p, buffer in self._buffers.items() if not buffer.adrift}
                consumer.resume(*(on_log & paused))


class _Assignment(ConsumerRebalanceListener):
    """Tells the writer what is its own; runs where heartbeats are sent, so that it must not wait for anything."""

    def __init__(self, writer: DatasetWriter, consumer: KafkaConsumer) -> None:
        self._writer = writer
        self._consumer = consumer

    def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        """Ends their assignment; what is being settled may finish, the position in the database decides."""
        self._writer.revoked(set(revoked))

    def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        """Pauses the partitions until the writer has put them at the database's position."""
        self._consumer.pause(*assigned)
        self._writer.assigned(set(assigned))
