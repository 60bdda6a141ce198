"""The books of the prediction log are exact, whatever the broker and the disk do."""

from __future__ import annotations

import errno
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from everloop_contracts.stubs.everloop.inference.v1.events_pb2 import PredictionsLogged
from everloop_inference.adapters.engines import LocalEngines
from everloop_inference.domain import ServedModel
from everloop_inference.fakes import ROW, MemorySink, ask
from everloop_inference.log import events as log_events
from everloop_inference.log.prediction_log import PredictionLog
from everloop_inference.log.spill import DAMAGED_FILES, Spill
from everloop_inference.models.load import Loader
from everloop_inference.models.swap import Models, Served
from everloop_inference.ports import Message, Outcome
from everloop_inference.predict import Predictor
from everloop_runtime.events import decode


class Bench:
    """A predictor with its log and a broker in memory."""

    def __init__(self, model: ServedModel, folder: Path, **limits: Any) -> None:
        self.folder = folder
        self.sink: MemorySink = limits.pop("sink", None) or MemorySink()
        name = limits.pop("owner", "one")
        self.spill = Spill(folder, name, limits.pop("spill_bytes", 1 << 30))
        options = {
            "batch_rows": 10,
            "batch_seconds": 0.01,
            "buffer_bytes": 1 << 30,
            "retry_seconds": 0.01,
        }
        self.log = PredictionLog(self.sink, self.spill, **{**options, **limits})
        models = Models()
        models.swap(model)
        self.predictor = Predictor(models, self.log, name)
        self.log.start()

    def predict(self, rows: int = 1) -> list[str]:
        rows_ = [{**ROW, "flight_id": f"f-{row}"} for row in range(rows)]
        return ask(self.predictor, rows_, size=100 * rows).prediction_ids

    @property
    def books(self) -> Any:
        return self.log.books.counts("flights")

    def logged_ids(self) -> list[str]:
        found: list[str] = []
        for message in self.sink.messages:
            event = decode(message.value, message.headers)
            assert isinstance(event.data, PredictionsLogged)
            assert len(event.data.prediction_ids) == message.rows
            found += event.data.prediction_ids
        return found


@pytest.fixture
def model(world: Any, tmp_path: Path) -> ServedModel:
    wanted = world.publish(1)
    return Loader(world.artifacts, LocalEngines(), tmp_path / "cache").load(
        wanted, world.policies["flights"]
    )


@pytest.fixture
def bench(model: ServedModel, tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(**limits: Any) -> Bench:
        made.append(Bench(model, tmp_path / "spill", **limits))
        return made[-1]

    yield make
    for item in made:
        if item.log.alive:
            item.log.close()


def test_every_row_is_logged_once_in_order_with_what_it_was(
    bench: Callable[..., Bench], until: Callable[..., None]
) -> None:
    it = bench()
    ids = [name for rows in (1, 3, 25, 1) for name in it.predict(rows)]
    until(lambda: it.books.logged == 30)
    assert it.logged_ids() == ids
    assert all(message.rows <= 10 for message in it.sink.messages)
    event = decode(it.sink.messages[0].value, it.sink.messages[0].headers)
    assert (event.type, event.pipeline) == ("everloop.inference.v1.PredictionsLogged", "flights")
    data = event.data
    assert isinstance(data, PredictionsLogged)
    columns = {column.name: column for column in data.columns}
    assert columns["carrier"].texts[0] == "AA"
    assert columns["departs"].numbers[0] == 1372674600  # 10:30 on the wall clock of New York
    assert data.record_ids[0] == "f-0"
    assert data.labels[0] in ("true", "false")
    assert 0 < data.scores[0] < 1
    assert data.model_version == 1
    assert it.books.balanced


def test_nulls_are_logged_as_nulls(bench: Callable[..., Bench], until: Callable[..., None]) -> None:
    it = bench()
    ask(it.predictor, [{**ROW, "age": None, "weekend": None, "flight_id": None}])
    until(lambda: it.books.logged == 1)
    data = decode(it.sink.messages[0].value, it.sink.messages[0].headers).data
    assert isinstance(data, PredictionsLogged)
    columns = {column.name: column for column in data.columns}
    assert math.isnan(columns["age"].numbers[0])
    assert math.isnan(columns["weekend"].numbers[0])
    assert list(data.record_ids) == []


def test_what_the_pipeline_redacts_is_null_in_the_log_and_nowhere_else(
    model: ServedModel, tmp_path: Path, until: Callable[..., None]
) -> None:
    names = ("carrier", "distance", "departs", "weekend")
    redacted = replace(model, policy=replace(model.policy, log_redact=names))
    it = Bench(redacted, tmp_path / "spill")
    answer = ask(it.predictor, [ROW, {**ROW, "carrier": "UA"}])
    until(lambda: it.books.logged == 2)
    plain = Bench(model, tmp_path / "plain")
    assert answer.scores == ask(plain.predictor, [ROW, {**ROW, "carrier": "UA"}]).scores
    plain.log.close()
    data = decode(it.sink.messages[0].value, it.sink.messages[0].headers).data
    assert isinstance(data, PredictionsLogged)
    columns = {column.name: column for column in data.columns}
    assert {name for name, column in columns.items() if column.redacted} == set(names)
    assert list(columns["carrier"].texts) == ["", ""]
    assert list(columns["carrier"].null_rows) == [0, 1]
    for name in ("distance", "departs", "weekend"):
        assert [math.isnan(value) for value in columns[name].numbers] == [True, True]
    assert list(columns["stops"].numbers) == [1.0, 1.0]
    assert b"UA" not in it.sink.messages[0].value
    it.log.close()


def test_the_latency_of_every_row_is_logged(
    bench: Callable[..., Bench], until: Callable[..., None]
) -> None:
    it = bench()
    began = time.perf_counter()
    it.predict(3)
    most = (time.perf_counter() - began) * 1e6
    until(lambda: it.books.logged == 3)
    data = decode(it.sink.messages[0].value, it.sink.messages[0].headers).data
    assert isinstance(data, PredictionsLogged)
    assert len(data.latency_micros) == 3
    assert 0 < data.latency_micros[0] == data.latency_micros[2] <= most


def test_an_outage_spills_and_replays_in_order(
    bench: Callable[..., Bench], until: Callable[..., None]
) -> None:
    it = bench()
    ids = it.predict(5)
    until(lambda: it.books.logged == 5)
    it.sink.away = True
    for number in range(20):
        ids += it.predict(3)
        until(lambda number=number: it.books.spilled == 3 * (number + 1))
    assert it.books.logged == 5
    assert it.books.balanced
    it.sink.away = False
    ids += it.predict(4)
    until(lambda: it.books.logged == 69)
    assert it.logged_ids() == ids
    assert (it.books.spilled, it.books.dropped) == (0, 0)
    assert not list(it.folder.glob("*/*.events"))


def test_the_disk_limit_drops_and_counts(
    bench: Callable[..., Bench], until: Callable[..., None]
) -> None:
    it = bench(spill_bytes=4000)
    it.sink.away = True
    for number in range(12):
        it.predict(5)
        until(lambda number=number: it.books.spilled + it.books.dropped == 5 * (number + 1))
    books = it.books
    assert books.dropped > 0
    assert books.spilled > 0
    assert sum(path.stat().st_size for path in it.folder.glob("*/*.events")) <= 4000
    it.sink.away = False
    until(lambda: it.books.spilled == 0)
    assert it.books.logged == books.spilled
    assert it.books.balanced


def test_the_buffer_limit_drops_without_waiting(bench: Callable[..., Bench]) -> None:
    it = bench(buffer_bytes=0)
    it.predict(3)
    assert (it.books.served, it.books.dropped) == (3, 3)


def test_the_buffer_has_one_limit_and_a_flood_leaves_room_for_other_models(
    model: ServedModel, tmp_path: Path
) -> None:
    limit = 1 << 20
    it = Bench(model, tmp_path / "spill", batch_seconds=60, batch_rows=1 << 20, buffer_bytes=limit)
    counts = it.log.books.counts

    def flood(name: str) -> None:
        wanted = replace(model.wanted, model=name)
        it.predictor.models._served = {"flights": Served(replace(model, wanted=wanted))}
        while not counts(name).dropped:
            it.predict(10)

    names = ["flights", *(f"model-{number}" for number in range(5))]
    for name in names:
        flood(name)
        assert counts(name).buffered > 0
    assert it.log._held <= limit
    assert it.log._bytes["flights"] > limit * 0.45
    buffered = sum(counts(name).buffered for name in names)
    it.log.close()
    assert it.log._held == 0
    assert sum(counts(name).logged for name in names) == buffered


def test_a_message_that_is_refused_for_good_blocks_nothing(
    bench: Callable[..., Bench], until: Callable[..., None]
) -> None:
    it = bench()
    it.sink.refuse_above = 100
    it.predict(2)
    until(lambda: it.books.dropped == 2)
    it.sink.refuse_above = 1 << 30
    it.predict(1)
    until(lambda: it.books.logged == 1)


def test_closing_flushes_to_the_broker_or_to_disk_and_the_next_replica_takes_over(
    bench: Callable[..., Bench], until: Callable[..., None]
) -> None:
    one = bench(batch_seconds=60, batch_rows=1000)
    ids = one.predict(7)
    one.log.close()
    assert one.books.logged == 7
    two = bench(owner="two", batch_seconds=60, batch_rows=1000)
    two.sink.away = True
    lost = two.predict(6)
    two.log.close()
    assert two.books.spilled == 6
    three = bench(owner="three")
    until(lambda: three.books.logged == 6)
    assert three.books.adopted == 6
    assert three.books.balanced
    assert one.logged_ids() == ids
    assert three.logged_ids() == lost
    assert [path.name for path in three.folder.iterdir()] == ["three"]


def test_the_files_of_a_living_replica_are_left_alone(bench: Callable[..., Bench]) -> None:
    one = bench()
    one.sink.away = True
    one.predict(2)
    two = bench(owner="two")
    assert two.books.adopted == 0
    assert (one.folder / "one").is_dir()


def test_replicas_that_start_together_share_nothing(tmp_path: Path) -> None:
    message = Message("flights", 1, "topic", b"k", b"v", ())
    gone = Spill(tmp_path, "gone", 1 << 20)
    for _ in range(100):
        assert gone.write([message])
    gone.close()
    together = threading.Barrier(8)

    def start(number: int) -> Spill:
        together.wait(10)
        return Spill(tmp_path, f"replica-{number}", 1 << 20)

    with ThreadPoolExecutor(8) as pool:
        spills = list(pool.map(start, range(8)))
    assert sorted(len(spill.adopted) for spill in spills) == [0] * 7 + [100]
    assert all(spill.write([message]) for spill in spills), "nobody took a living replica's folder"
    for spill in spills:
        spill.close()


def test_a_damaged_file_does_not_keep_a_replica_from_starting(tmp_path: Path) -> None:
    first = Spill(tmp_path, "one", 1 << 20)
    message = Message("flights", 2, "topic", b"k", b"v", (("name", b"\xff"),))
    assert first.write([message])
    assert first.write([message, message])
    first.close()
    oldest, *_ = sorted((tmp_path / "one").glob("*.events"))
    oldest.write_bytes(b"\xff" * 50)
    second = Spill(tmp_path, "two", 1 << 20)
    assert second.adopted == [("flights", 2), ("flights", 2)]
    assert second.oldest() == [message, message]
    (kept,) = tmp_path.glob("*.damaged")
    assert kept.read_bytes() == b"\xff" * 50


def test_damaged_files_are_kept_up_to_a_number(tmp_path: Path) -> None:
    message = Message("flights", 1, "topic", b"k", b"v", ())
    for number in range(DAMAGED_FILES + 3):
        spill = Spill(tmp_path, str(number), 1 << 20)
        assert spill.write([message])
        spill.close()
        (left,) = tmp_path.glob("*/*.events")
        left.write_bytes(b"x")
    Spill(tmp_path, "last", 1 << 20).close()
    assert len(list(tmp_path.glob("*.damaged"))) == DAMAGED_FILES


def test_a_file_that_cannot_be_read_does_not_keep_a_replica_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Spill(tmp_path, "one", 1 << 20)
    assert first.write([Message("flights", 2, "topic", b"k", b"v", ())])
    first.close()

    def unreadable(_: Path) -> bytes:
        raise OSError("input/output error")

    monkeypatch.setattr(Path, "read_bytes", unreadable)
    second = Spill(tmp_path, "two", 1 << 20)
    assert second.is_empty()
    assert len(list(tmp_path.glob("*.damaged"))) == 1
    second.close()


def test_a_cut_file_is_not_published(
    bench: Callable[..., Bench], until: Callable[..., None]
) -> None:
    it = bench(retry_seconds=3600)
    it.sink.away = True
    it.predict(3)
    until(lambda: it.books.spilled == 3)
    it.predict(2)
    until(lambda: it.books.spilled == 5)
    oldest, *_ = sorted(it.folder.glob("*/*.events"))
    oldest.write_bytes(oldest.read_bytes()[:-10])
    it.sink.away = False
    it.log._retry_at = 0
    until(lambda: it.books.logged == 2)
    assert (it.books.dropped, it.books.spilled) == (3, 0)
    assert it.books.balanced
    assert len(list(it.folder.glob("*.damaged"))) == 1


def test_a_disk_that_fails_for_a_while_loses_nothing(
    bench: Callable[..., Bench], until: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    it = bench()
    it.sink.away = True
    ids = it.predict(3)
    until(lambda: it.books.spilled == 3)
    failed = threading.Event()

    def fails(_: Spill) -> list[Message]:
        failed.set()
        raise OSError("input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Spill, "oldest", fails)
        it.sink.away = False
        assert failed.wait(10)
        ids += it.predict(2)
        until(lambda: it.books.spilled == 5)
    until(lambda: it.books.logged == 5)
    assert it.logged_ids() == ids


def test_a_disk_that_takes_half_a_file_keeps_none_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "no space left on device")

    spill = Spill(tmp_path, "one", 1 << 20)
    message = Message("flights", 1, "topic", b"key", b"value", ())
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        assert not any(spill.write([message]) for _ in range(3))
    assert not list(tmp_path.rglob("*.part"))
    assert spill.write([message])
    spill.close()


def test_a_sink_that_fails_as_nobody_foresaw_does_not_end_the_log(
    bench: Callable[..., Bench], until: Callable[..., None]
) -> None:
    class Broken(MemorySink):
        broken = True

        def send(self, messages: Sequence[Message]) -> list[Outcome]:
            if self.broken:
                raise ValueError("unforeseen")
            return super().send(messages)

    sink = Broken()
    it = bench(sink=sink)
    ids = it.predict(3)
    until(lambda: it.books.spilled == 3)
    sink.broken = False
    ids += it.predict(2)
    until(lambda: it.books.logged == 5)
    assert it.logged_ids() == ids


def test_rows_that_cannot_be_written_down_cost_no_other_models_rows(
    model: ServedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def value(model: ServedModel, *rest: Any) -> bytes:
        if model.name == "other":
            raise ValueError("unforeseen")
        return encoded(model, *rest)

    encoded = log_events._value
    monkeypatch.setattr(log_events, "_value", value)
    it = Bench(model, tmp_path / "spill", batch_seconds=60, batch_rows=1000)
    other = replace(model, wanted=replace(model.wanted, model="other"))
    ids = it.predict(2)
    it.predictor.models._served = {"flights": Served(other)}
    it.predict(3)
    it.log.close()
    assert it.logged_ids() == ids
    assert (it.books.logged, it.log.books.counts("other").dropped) == (2, 3)


def test_a_cycle_that_fails_is_not_the_last(
    bench: Callable[..., Bench], until: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    it = bench()
    failed = threading.Event()

    def fails() -> None:
        failed.set()
        raise RuntimeError("unforeseen")

    with monkeypatch.context() as patch:
        patch.setattr(it.log, "_replay", fails)
        assert failed.wait(10)
    it.predict(2)
    until(lambda: it.books.logged == 2)


def test_a_sample_is_logged_and_the_rest_is_counted(
    model: ServedModel, tmp_path: Path, until: Callable[..., None]
) -> None:
    sampled = replace(model, policy=replace(model.policy, log_sample=0.25, max_rows=4000))
    it = Bench(sampled, tmp_path / "spill", batch_rows=5000)
    for _ in range(50):
        it.predict(1)
    it.predict(4000)
    until(lambda: it.books.buffered == 0)
    books = it.books
    assert books.balanced
    assert books.served == 4050
    assert 850 < books.logged < 1200
    assert len(it.logged_ids()) == books.logged
    it.log.close()


def test_what_comes_after_the_end_is_counted_as_dropped(bench: Callable[..., Bench]) -> None:
    it = bench()
    it.predict(2)
    it.log.close()
    it.predict(3)
    books = it.books
    assert (books.logged, books.dropped, books.buffered) == (2, 3, 0)
    assert books.balanced


def test_events_larger_than_a_broker_takes_are_split(
    model: ServedModel, tmp_path: Path, until: Callable[..., None]
) -> None:
    it = Bench(model, tmp_path / "spill", batch_rows=500)
    rows = [{**ROW, "carrier": "x" * 50_000} for _ in range(100)]
    ids = ask(it.predictor, rows, size=5_000_000).prediction_ids
    until(lambda: it.books.logged == 100)
    assert it.logged_ids() == ids
    assert max(len(message.value) for message in it.sink.messages) < 1_000_000
    it.log.close()


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(st.tuples(st.integers(1, 12), st.booleans()), min_size=1, max_size=15),
    spill_bytes=st.sampled_from([0, 2000, 1 << 30]),
)
def test_the_books_balance_whatever_happens(
    model: ServedModel,
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[tuple[int, bool]],
    spill_bytes: int,
) -> None:
    it = Bench(model, tmp_path_factory.mktemp("spill"), spill_bytes=spill_bytes)
    unbalanced = []
    watching = threading.Event()

    def watch() -> None:
        while not watching.is_set():
            if not it.books.balanced:
                unbalanced.append(it.books)

    watcher = threading.Thread(target=watch)
    watcher.start()
    ids = []
    for rows, away in steps:
        it.sink.away = away
        ids += it.predict(rows)
    it.sink.away = False
    it.log.close()
    watching.set()
    watcher.join()
    assert unbalanced == []
    books = it.books
    assert books.served == len(ids) == books.logged + books.dropped + books.spilled
    logged = it.logged_ids()
    assert len(set(logged)) == len(logged) == books.logged
    assert set(logged) <= set(ids)
    # Nothing is dropped while there is room, and nothing overtakes.
    if spill_bytes == 1 << 30:
        assert books.dropped == 0
    assert logged == [name for name in ids if name in set(logged)]


def test_versions_that_take_turns_share_no_event_and_keep_their_order(
    model: ServedModel, tmp_path: Path, until: Callable[..., None]
) -> None:
    it = Bench(model, tmp_path / "spill", batch_rows=200, batch_seconds=60)
    other = replace(model, wanted=replace(model.wanted, version=2), shadow=True)
    models = it.predictor.models
    given: dict[int, list[str]] = {1: [], 2: []}
    for number in range(50):
        models._served = {"flights": Served(other if number % 2 else model)}
        given[1 + number % 2] += it.predict(1 + number % 3)
    it.log.close()
    found: dict[int, list[str]] = {1: [], 2: []}
    for message in it.sink.messages:
        data = decode(message.value, message.headers).data
        assert isinstance(data, PredictionsLogged)
        assert data.shadow is (data.model_version == 2)
        found[data.model_version] += data.prediction_ids
    assert found == given
    assert len(it.sink.messages) == 2
