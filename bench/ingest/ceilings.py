"""What the machine does without ingest: a bare consumer that writes Parquet, and a bare producer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from kafka import KafkaConsumer, TopicPartition

from bench.ingest.measure import Cost
from bench.ingest.readings import PARTITIONS, readings
from everloop_runtime.kafka import ensure_topics
from everloop_runtime.librdkafka import fast_producer

__all__ = ["bare_consumer", "bare_producer", "fill"]

SHARD_ROWS = 10_000


def bare_consumer(bootstrap: str, topic: str, records: int, folder: Path) -> Cost:
    """kafka-python with crc32c, orjson, pyarrow; no validation, no order, no version."""
    return _alone(_consume, bootstrap, topic, records, folder)


def bare_producer(bootstrap: str, topic: str, records: int, sensors: int) -> Cost:
    """librdkafka with a report for each record."""
    return _alone(_produce, bootstrap, topic, records, sensors)


def fill(
    bootstrap: str, topic: str, records: int, sensors: int, enough: Callable[[], bool] = bool
) -> int:
    """Puts records on a topic that is made for them, fewer where it is `enough`; returns their bytes."""
    ensure_topics(bootstrap, {topic: PARTITIONS})
    client = fast_producer(bootstrap, {"queue.buffering.max.messages": 0})
    size = 0
    for number, (key, value) in enumerate(readings(records, sensors)):
        client.produce(topic, value, key)
        size += len(value)
        if number % 1000:
            continue
        if enough():
            break
        while len(client) > 100_000:
            client.poll(0.1)
    assert client.flush(120) == 0
    return size


def _alone(work: Any, *arguments: object) -> Cost:
    """Runs it in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        cost: Cost = pool.submit(work, *arguments).result()
        return cost


def _consume(bootstrap: str, topic: str, records: int, folder: Path) -> Cost:
    consumer = KafkaConsumer(
        bootstrap_servers=bootstrap,
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        max_poll_records=5_000,
    )
    consumer.assign([TopicPartition(topic, number) for number in range(PARTITIONS)])
    began, processor = time.perf_counter(), time.process_time()
    values: list[bytes] = []
    left, size = records, 0
    while left:
        for messages in consumer.poll(timeout_ms=200).values():
            values += [message.value for message in messages]
            left -= len(messages)
        if len(values) >= SHARD_ROWS or not left:
            size += _write(values, folder / f"{left}.parquet")
            values = []
    cost = Cost(time.perf_counter() - began, time.process_time() - processor, records, size)
    consumer.close()
    return cost


def _write(values: Sequence[bytes], path: Path) -> int:
    table = pa.Table.from_pylist([orjson.loads(value) for value in values])
    pq.write_table(table, path, compression="zstd", compression_level=1)
    return sum(map(len, values))


def _produce(bootstrap: str, topic: str, records: int, sensors: int) -> Cost:
    batch = list(readings(records, sensors))
    client = fast_producer(bootstrap, {"queue.buffering.max.messages": 0})
    client.list_topics(topic, 30)
    reported = 0

    def report(error: object, _: object) -> None:
        nonlocal reported
        assert error is None
        reported += 1

    began, processor = time.perf_counter(), time.process_time()
    for number, (key, value) in enumerate(batch):
        client.produce(topic, value, key, on_delivery=report)
        if number % 1000 == 0:
            client.poll(0)
    client.flush(120)
    assert reported == records
    size = sum(len(value) for _, value in batch)
    return Cost(time.perf_counter() - began, time.process_time() - processor, records, size)
