"""The prediction log against the real broker: an outage loses nothing and keeps the books exact."""

from __future__ import annotations

import gc
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from kafka import KafkaConsumer

from everloop import stack
from everloop.stack.endpoints import Endpoints
from everloop_contracts.stubs.everloop.inference.v1.events_pb2 import PredictionsLogged
from everloop_inference.adapters import kafka as adapter
from everloop_inference.adapters.engines import LocalEngines
from everloop_inference.adapters.kafka import KafkaSink
from everloop_inference.domain import ServingPolicy, Wanted
from everloop_inference.fakes import ROW, MemoryArtifacts, ask, sample_artifact
from everloop_inference.log.prediction_log import PredictionLog
from everloop_inference.log.spill import Spill
from everloop_inference.models.load import Loader
from everloop_inference.models.swap import Models
from everloop_inference.ports import Message, Outcome
from everloop_inference.predict import Predictor
from everloop_runtime.events import decode

MESSAGE = Message("flights", 1, "everloop.predictions", b"flights", b"x", ())


def test_a_closed_port_is_away_at_once() -> None:
    sink = KafkaSink("127.0.0.1:1", send_seconds=5, queue_bytes=1 << 20)
    began = time.monotonic()
    assert sink.send([MESSAGE, MESSAGE]) == [Outcome.AWAY] * 2
    assert time.monotonic() - began < 2
    sink.close()


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_a_silent_broker_is_away_soon(silent: str) -> None:
    sink = KafkaSink(silent, send_seconds=0.5, queue_bytes=1 << 20)
    began = time.monotonic()
    assert sink.send([MESSAGE]) == [Outcome.AWAY]
    assert time.monotonic() - began < 5
    sink.close()


def test_an_abandoned_producer_leaves_nothing_behind(
    silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "ensure_topics", lambda *_, **__: None)
    sink = KafkaSink(silent, send_seconds=0.05, queue_bytes=1 << 20)
    for _ in range(3):
        assert sink.send([MESSAGE] * 5) == [Outcome.AWAY] * 5
    gc.collect()
    waiting = [
        item
        for item in gc.get_objects()
        if isinstance(item, partial) and item.func is adapter._settle
    ]
    assert waiting == []


def test_more_than_the_queue_holds_is_away_and_raises_nothing(
    silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "ensure_topics", lambda *_, **__: None)
    monkeypatch.setattr(adapter, "MAX_BYTES", 2048)
    sink = KafkaSink(silent, send_seconds=0.2, queue_bytes=0)
    large = [replace(MESSAGE, value=b"x" * 1500)] * 4
    assert sink.send(large) == [Outcome.AWAY] * 4


def test_what_nobody_foresaw_is_away_and_raises_nothing(
    silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ValueError("unforeseen")

    monkeypatch.setattr(adapter, "ensure_topics", broken)
    assert KafkaSink(silent, 0.2, 1 << 20).send([MESSAGE]) == [Outcome.AWAY]


@pytest.fixture
def kafka(tmp_path: Path) -> Iterator[Endpoints]:
    try:
        yield stack.up(tmp_path, only=("kafka",))
    finally:
        stack.down(tmp_path)


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_killed_broker_loses_nothing(
    kafka: Endpoints, tmp_path: Path, until: Callable[..., None]
) -> None:
    artifacts, artifact = MemoryArtifacts(), sample_artifact()
    artifacts.runs["run"] = artifact
    wanted = Wanted("flights", 1, "run", artifact.sha256)
    models = Models()
    models.swap(
        Loader(artifacts, LocalEngines(), tmp_path / "cache").load(
            wanted, ServingPolicy("flight_id")
        )
    )
    log = PredictionLog(
        KafkaSink(kafka.kafka_bootstrap, send_seconds=2, queue_bytes=1 << 26),
        Spill(tmp_path / "spill", "one", 1 << 30),
        batch_rows=500,
        batch_seconds=0.05,
        buffer_bytes=1 << 26,
        retry_seconds=0.2,
    )
    log.start()
    predictor = Predictor(models, log, "epoch")

    def predict() -> list[str]:
        return ask(predictor, [ROW] * 3, size=300).prediction_ids

    ids = predict()
    until(lambda: log.books.counts("flights").logged == 3, 30)
    killed = stack.kill(tmp_path, "kafka")
    slowest = 0.0
    while not log.books.counts("flights").spilled:
        began = time.perf_counter()
        ids += predict()
        slowest = max(slowest, time.perf_counter() - began)
        time.sleep(0.001)
    assert slowest < 1.0
    stack.wait_healthy(tmp_path, "kafka", 60, not_pid=killed)
    ids += predict()
    until(lambda: log.books.counts("flights").logged == len(ids), 60)
    log.close()
    books = log.books.counts("flights")
    assert (books.served, books.spilled, books.dropped) == (len(ids), 0, 0)
    # A batch whose acknowledgement was lost comes twice, under the same event id: consumers know it by that.
    assert dict.fromkeys(logged(kafka)) == dict.fromkeys(ids)


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_batch_larger_than_the_queue_is_stored(
    kafka: Endpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "MAX_BYTES", 900_000)
    sink = KafkaSink(kafka.kafka_bootstrap, send_seconds=20, queue_bytes=0)
    large = [replace(MESSAGE, value=b"x" * 500_000)] * 10
    assert sink.send(large) == [Outcome.STORED] * 10
    sink.close()


def logged(kafka: Endpoints) -> list[str]:
    consumer = KafkaConsumer(
        "everloop.predictions",
        bootstrap_servers=kafka.kafka_bootstrap,
        auto_offset_reset="earliest",
        group_id=None,
        consumer_timeout_ms=5000,
    )
    seen, found = set[str](), list[str]()
    for record in consumer:
        event = decode(record.value, record.headers)
        assert isinstance(event.data, PredictionsLogged)
        if event.id not in seen:
            seen.add(event.id)
            found += event.data.prediction_ids
    consumer.close()
    return found
