"""A batch is settled once: rows, books, dead letters and labels, whatever happens in between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa

from everloop_ingest import settle, shards
from everloop_ingest.adapters.store.settlements import Settlements
from everloop_ingest.domain import Batch, Books, Partition
from everloop_ingest.validate import Validator
from everloop_runtime.errors import EverloopError, Kind

ACTUALS = "everloop.actuals"


def labels_of(world: Any) -> list[tuple[str, str]]:
    events = world.events(ACTUALS)
    return [
        pair
        for event in events
        for pair in zip(event.data.record_ids, event.data.labels, strict=True)
    ]


def test_the_books_are_of_one_moment_while_others_settle(
    world: Any, make_record: Callable[..., bytes]
) -> None:
    world.send(0, make_record("a"), b"{")
    world.settle_all()
    before = world.settlements.books("parcels")
    world.send(0, make_record("b"), b"{", b"[]")

    settled = False

    def meanwhile(*_: Any) -> None:
        nonlocal settled
        if not settled:
            settled = True
            world.settle_all()

    sa.event.listen(world.database.engine, "after_cursor_execute", meanwhile)
    during = world.settlements.books("parcels")
    after = world.settlements.books("parcels")
    assert during in (before, after)
    assert (before.accepted, before.rejected) == (1, 1)
    assert (after.accepted, after.rejected, after.actuals) == (2, 3, 0)
    assert after.rejected_by_reason == {"MALFORMED_JSON": 2, "NOT_AN_OBJECT": 1}


def test_the_books_count_every_message_once(world: Any, make_record: Callable[..., bytes]) -> None:
    good, broken = make_record("a", lost=True), make_record("b", weight="1")
    world.send(0, good, broken, b"{", b'{"parcel": "c", "lost": false}', make_record("d"))
    world.settle_all()
    assert world.settlements.books("parcels") == Books(3, 1, {"WRONG_TYPE": 1, "MALFORMED_JSON": 1})
    [key] = (world.bucket / "parcels" / "shards").rglob("*.parquet")
    expected = "parcels/shards/everloop.records.parcels/0/000000000000-000000000004.parquet"
    assert str(key.relative_to(world.bucket)) == expected
    rows = pq.read_table(key).to_pylist()
    assert [row["everloop_offset"] for row in rows] == [0, 3, 4]
    assert [row["everloop_is_actual"] for row in rows] == [False, True, False]
    assert {row["everloop_partition"] for row in rows} == {0}
    assert labels_of(world) == [("a", "true"), ("c", "false")]


def test_a_dead_letter_is_the_message_with_the_reason(world: Any) -> None:
    world.send(2, b"not json \xff")
    world.settle_all()
    [(value, headers)] = world.dead_letters()
    assert value == b"not json \xff"
    assert headers["everloop-reason"] == "MALFORMED_JSON"
    assert headers["everloop-field"] == ""
    assert headers["everloop-message"]
    assert headers["everloop-origin"] == "everloop.records.parcels/2/0"
    assert headers["from"] == "test"


def test_headers_of_a_dead_letter_are_measured_as_they_are_sent(world: Any) -> None:
    world.send(0, b"{", b"{")
    for row, name in enumerate(["e" * 9000, "é" * 9000]):  # one and two bytes each
        world.topic[0][row] = replace(world.topic[0][row], headers=[(name, b"")])
    world.settle_all()
    kept = [max(map(len, headers)) for _, headers in world.dead_letters()]
    assert kept[0] == 9000
    assert kept[1] < 100


def test_a_dead_letter_always_fits_a_message(world: Any) -> None:
    world.send(0, b"x" * 9000)
    whole = world.topic[0][0]
    world.topic[0][0] = replace(whole, key=b"k" * 10**6, headers=[("h", b"v" * 10**6)])
    world.settle_all()
    [(value, headers)] = world.dead_letters()
    assert value == b"x" * 4096
    assert headers["everloop-reason"] == "RECORD_TOO_LARGE"
    assert headers["everloop-truncated-from-bytes"] == "9000"
    assert "h" not in headers
    assert len(world.database.pending(1)[0].key) < 20_000


def test_a_batch_of_nothing_but_rejections_has_no_shard(world: Any) -> None:
    world.send(0, b"{", None)
    world.settle_all()
    assert world.settlements.books("parcels").rejected == 2
    assert not list(world.bucket.rglob("shards/**/*.parquet"))
    assert world.settlements.positions("everloop.records.parcels")[0] == 2


def test_a_tombstone_is_counted_and_leaves_a_dead_letter(world: Any) -> None:
    world.send(0, None)
    world.settle_all()
    assert world.settlements.books("parcels").rejected == 1
    [(value, headers)] = world.dead_letters()
    assert value == b""
    assert headers["everloop-reason"] == "MALFORMED_JSON"
    assert headers["everloop-message"].startswith("the message has no value")


def test_labels_leave_in_events_of_bounded_size(
    world: Any, make_record: Callable[..., bytes]
) -> None:
    ids = [f"p{n}" for n in range(5001)] + ["i" * 3000 + str(n) for n in range(100)]
    world.send(0, *(make_record(name, lost=True) for name in ids))
    world.settle_all()
    events = world.events(ACTUALS)
    assert [name for event in events for name in event.data.record_ids] == ids
    assert len(events) > 2
    assert all(len(event.data.record_ids) <= 5000 for event in events)
    assert all(event.data.ByteSize() < 600_000 for event in events)
    assert len({event.id for event in events}) == len(events)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("owner", "method"), [("files", "put"), ("settlements", "settle")])
def test_a_crash_anywhere_neither_loses_nor_doubles(
    make_world: Any,
    make_record: Callable[..., bytes],
    crash: Any,
    owner: str,
    method: str,
    when: str,
) -> None:
    broken, undisturbed = make_world(), make_world()
    for world in (broken, undisturbed):
        world.send(1, make_record("a", lost=True), b"{", make_record("b"))
    with pytest.raises(crash(getattr(broken, owner), method, when)):
        broken.settle_all()
    broken.restart()
    # After the crash the batch may be cut elsewhere: more has arrived.
    for world in (broken, undisturbed):
        world.send(1, make_record("c", lost=False), b"[]")
        world.settle_all()
    assert broken.settlements.books("parcels") == undisturbed.settlements.books("parcels")
    assert sorted(labels_of(broken)) == sorted(labels_of(undisturbed))
    assert [value for value, _ in broken.dead_letters()] == [b"{", b"[]"]
    versions = [w.cut(w.pipeline, "r", 5.0) for w in (broken, undisturbed)]
    assert broken.rows(versions[0]) == undisturbed.rows(versions[1])
    assert [row["parcel"] for row in broken.rows(versions[0])] == ["a", "b", "c"]


def test_a_writer_that_lost_its_partition_changes_nothing(
    world: Any, make_record: Callable[..., bytes]
) -> None:
    world.send(0, make_record("a"), make_record("b"))
    stale = world.batch(0)
    world.settle_all()
    before = world.settlements.books("parcels"), world.outbox()
    assert world.settle(stale) is False
    assert world.settle(replace(stale, messages=stale.messages[:1], end=1)) is False
    assert (world.settlements.books("parcels"), world.outbox()) == before


def test_an_empty_batch_moves_the_position_over_control_records(world: Any) -> None:
    batch = replace(world.batch(0), end=7)
    assert world.settle(batch)
    assert world.settlements.claim(Partition(world.pipeline.record_topic, 0), 0) == 7
    assert world.settlements.books("parcels") == Books(0, 0, {})


POISON = b'{"parcel": "poison", "sent": "2026-03-01T12:00:00Z", "weight": 1.0, "lost": true}'


def holds_poison(arguments: tuple[Any, ...]) -> bool:
    """Whether a step is asked to work on the poison, in whichever form it gets it."""
    for item in arguments:
        messages = item.messages if isinstance(item, Batch) else [item]
        if isinstance(item, list | tuple):
            messages = item
        if any(getattr(message, "value", message) == POISON for message in messages):
            return True
    return False


@pytest.mark.parametrize(
    ("owner", "step"),
    [
        (Validator, "__call__"),
        (shards, "encode"),
        (settle, "_shard"),
        (settle, "_labels"),
        (settle, "_dead_letter"),
        (Settlements, "settle"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_message_that_breaks_any_step_does_not_block_its_partition(
    world: Any,
    make_record: Callable[..., bytes],
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    step: str,
) -> None:
    real = getattr(owner, step)
    rejected = (
        step == "_dead_letter"
    )  # the step sees a message only if something else is wrong with it

    def fragile(*arguments: Any) -> Any:
        shard = arguments[2] if step == "settle" else None
        if holds_poison(arguments) and not (shard and "UNPROCESSABLE" in shard.rejected):
            raise ZeroDivisionError
        return real(*arguments)

    monkeypatch.setattr(owner, step, fragile)
    if rejected:
        whole = Validator.__call__

        def strict(self: Validator, messages: list[bytes | None], *rest: Any) -> Any:
            return whole(self, [b"}" if value == POISON else value for value in messages])

        monkeypatch.setattr(Validator, "__call__", strict)
    world.send(0, b"{", make_record("a"), make_record("b", lost=True))
    world.send(0, POISON, make_record("c"), b"[")
    world.settle_all()

    letters = world.dead_letters()
    reasons = [headers["everloop-reason"] for _, headers in letters]
    assert reasons == ["MALFORMED_JSON", "UNPROCESSABLE", "MALFORMED_JSON"]
    assert letters[1][0] == POISON
    assert letters[1][1]["everloop-origin"] == "everloop.records.parcels/0/3"
    assert "ZeroDivisionError" in letters[1][1]["everloop-message"]
    assert world.settlements.books("parcels") == Books(
        3, 0, {"MALFORMED_JSON": 2, "UNPROCESSABLE": 1}
    )
    assert labels_of(world) == [("b", "true")]
    assert world.settlements.positions("everloop.records.parcels")[0] == 6
    version = world.cut(world.pipeline, "r", 5.0)
    assert [row["parcel"] for row in world.rows(version)] == ["a", "b", "c"]


def test_a_batch_that_only_fails_as_a_whole_loses_no_message(
    world: Any, make_record: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shards.encode

    def small_memory(validated: Any, messages: Any, partition: int) -> bytes:
        if len(messages) > 3:
            raise MemoryError
        return real(validated, messages, partition)

    monkeypatch.setattr(shards, "encode", small_memory)
    world.send(0, *(make_record(f"p{n}") for n in range(10)))
    world.topic[0] = [message for message in world.topic[0] if message.offset not in {4, 5}]
    batch = replace(world.batch(0), end=12)  # with holes in it and control records behind
    assert world.settle(batch)
    assert world.settlements.books("parcels") == Books(8, 0, {})
    assert world.settlements.positions("everloop.records.parcels")[0] == 12


def test_an_outage_is_waited_for_and_rejects_nothing(
    world: Any, make_record: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    away = EverloopError(Kind.UNAVAILABLE, "OBJECT_STORE_UNAVAILABLE", "away")

    def put(key: str, content: bytes) -> None:
        raise away

    world.send(0, make_record("a"), b"{")
    monkeypatch.setattr(world.files, "put", put)
    with pytest.raises(EverloopError) as caught:
        world.settle(world.batch(0))
    assert caught.value is away
    assert world.settlements.books("parcels") == Books(0, 0, {})
    monkeypatch.undo()
    world.settle_all()
    assert world.settlements.books("parcels").accepted == 1


def test_an_outage_among_the_halves_goes_on_where_it_stopped(
    world: Any, make_record: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shards.encode
    outages = iter([True])

    def fragile(validated: Any, messages: Any, partition: int) -> bytes:
        if any(message.value == POISON for message in messages):
            if len(messages) == 1 and next(outages, False):
                raise EverloopError(Kind.UNAVAILABLE, "DATABASE_UNAVAILABLE", "away")
            raise ZeroDivisionError
        return real(validated, messages, partition)

    monkeypatch.setattr(shards, "encode", fragile)
    world.send(0, make_record("a"), make_record("b"), make_record("c"), POISON)
    whole = world.batch(0)
    with pytest.raises(EverloopError):
        world.settle(whole)
    assert world.settle(whole) is False  # half of it is settled: it is read again
    world.settle_all()
    assert world.settlements.books("parcels") == Books(3, 0, {"UNPROCESSABLE": 1})
