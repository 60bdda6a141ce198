"""Dead letters are kept once, found again, and put on their topic at most once."""

from __future__ import annotations

import copy
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everloop_contracts.pipeline import Pipeline
from everloop_contracts.stubs.everloop.ingest.v1 import dead_letter_pb2 as pb
from everloop_ingest import dead_letters, letters
from everloop_ingest.convert import dead_letter, wanted
from everloop_ingest.dead_letters import Wanted
from everloop_ingest.domain import DeadLetter, Reason
from everloop_ingest.letters import REPLAY_OF, SENT, sent_at
from everloop_runtime.errors import EverloopError, Kind

Make = Callable[..., bytes]
TOPIC = "everloop.records.parcels"
ALL = Wanted()


def pages(world: Any, which: Wanted, size: int) -> list[list[str]]:
    found, token = [], ""
    while True:
        page, token = world.letters.page(world.pipeline, which, token, size)
        found.append([kept.id for kept in page])
        if not token:
            return found


def ids(world: Any, which: Wanted = ALL) -> list[str]:
    return [name for page in pages(world, which, 500) for name in page]


def objects(world: Any) -> list[str]:
    folder = world.bucket / "parcels" / "dead-letters"
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.parquet"))


def replay(world: Any, request_id: str, *names: str, which: Wanted = ALL, size: int = 500) -> Any:
    return world.letters.replay(world.pipeline, request_id, names, which, "", size)


def test_a_dead_letter_is_kept_as_it_came(world: Any, make_record: Make) -> None:
    world.send(2, make_record("a"), b"not json \xff", timestamp=77)
    world.send(2, None, make_record("b", weight="1"))
    world.settle_all()
    assert objects(world) == [f"{TOPIC}/2/000000000000-000000000003.parquet"]
    assert ids(world) == [f"{TOPIC}/2/3", f"{TOPIC}/2/2", f"{TOPIC}/2/1"]
    kept = world.letters.get(world.pipeline, f"{TOPIC}/2/1")
    assert (kept.letter.value, kept.letter.key) == (b"not json \xff", b"key")
    assert kept.letter.headers == [("from", b"test"), ("none", b"")]
    assert (kept.letter.timestamp, kept.letter.reason) == (77, Reason.MALFORMED_JSON)
    shown = dead_letter(kept, world.pipeline, whole=True)
    assert (shown.value, shown.value_bytes, shown.headers[0].name) == (b"not json \xff", 10, "from")
    assert (shown.message_time.ToMilliseconds(), shown.HasField("replay_time")) == (77, False)
    weight = world.letters.get(world.pipeline, f"{TOPIC}/2/3").letter
    assert (weight.reason, weight.field) == (Reason.WRONG_TYPE, "weight")
    [listed] = world.letters.page(world.pipeline, Wanted(reason="WRONG_TYPE"), "", 9)[0]
    assert (listed.letter.value, listed.letter.key, listed.value_bytes) == (
        b"",
        None,
        len(weight.value),
    )


def test_what_is_accepted_leaves_no_object(world: Any, make_record: Make) -> None:
    world.send(0, make_record("a"))
    world.settle_all()
    assert objects(world) == []
    assert ids(world) == []


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", ["put", "settle"])
def test_a_crash_keeps_every_dead_letter_once(
    world: Any, make_record: Make, crash: Any, step: str, when: str
) -> None:
    world.send(0, b"{", make_record("a"), b"[]")
    owner = world.files if step == "put" else world.settlements
    died = crash(owner, step, when)
    with pytest.raises(died):
        world.settle_all()
    world.restart()
    world.settle_all()
    assert objects(world) == [f"{TOPIC}/0/000000000000-000000000002.parquet"]
    assert ids(world) == [f"{TOPIC}/0/2", f"{TOPIC}/0/0"]
    assert len(world.dead_letters()) == 2


def test_what_cannot_be_processed_is_kept_too(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(letter: Any, rejection: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr("everloop_ingest.settle._dead_letter", broken)
    world.send(0, b"{")
    world.settle_all()
    [kept] = world.letters.page(world.pipeline, Wanted(), "", 9)[0]
    assert kept.letter.reason is Reason.UNPROCESSABLE
    assert world.letters.get(world.pipeline, kept.id).letter.value == b"{"


texts = st.text(max_size=20)
some_letters = st.builds(
    DeadLetter,
    offset=st.integers(0, 2**62),
    timestamp=st.integers(-1, 2**63 - 1),
    key=st.none() | st.binary(max_size=9),
    value=st.binary(max_size=50),
    headers=st.lists(st.tuples(st.text(st.characters(exclude_categories=["Cs"])), st.binary())),
    reason=st.sampled_from(Reason),
    field=st.text(st.characters(exclude_categories=["Cs"]), max_size=9),
    message=st.text(st.characters(exclude_categories=["Cs"]), max_size=9),
)


@given(st.lists(some_letters, max_size=5))
def test_an_object_holds_what_was_put_in(
    tmp_path_factory: pytest.TempPathFactory, found: list[DeadLetter]
) -> None:
    path = tmp_path_factory.getbasetemp() / "letters.parquet"
    path.write_bytes(letters.encode(found))
    assert list(letters.decode(path, "", None)) == found[::-1]


def test_names_that_are_no_text_are_kept_readable(tmp_path: Path) -> None:
    letter = DeadLetter(0, 0, None, b"", [("\udcff", b"")], Reason.WRONG_TYPE, "\ud800", "x")
    path = tmp_path / "letters.parquet"
    path.write_bytes(letters.encode([letter]))
    [found] = letters.decode(path, "", None)
    assert (found.headers, found.field) == ([("\\udcff", b"")], "\\ud800")


def rejected(world: Any, make_record: Make, batches: int) -> list[str]:
    """Dead letters of two reasons in so many objects; their ids, newest first."""
    names = []
    for number in range(batches):
        offset = len(world.topic[number % 3])
        world.send(number % 3, b"{", make_record("a"), make_record("b", weight=-1), b"[")
        names += [f"{TOPIC}/{number % 3}/{offset + row}" for row in (0, 2, 3)]
        world.settle_all()
    return names[::-1]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 500])
def test_pages_hold_each_once_in_order(
    world: Any, make_record: Make, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters, "_FILES_PER_PAGE", 2)
    expected = rejected(world, make_record, 5)
    found = pages(world, Wanted(), size)
    assert [name for page in found for name in page] == expected
    assert max(map(len, found)) <= min(size, 6)
    broken = [name for page in pages(world, Wanted(reason="OUT_OF_RANGE"), size) for name in page]
    assert broken == expected[1::3]
    assert pages(world, Wanted(reason="TOO_OLD"), size) == [[]]


def test_times_choose_what_was_rejected_between_them(world: Any, make_record: Make) -> None:
    before = datetime.now(UTC)
    first = rejected(world, make_record, 1)
    between = datetime.now(UTC)
    both = rejected(world, make_record, 2)[:3]
    assert set(ids(world, Wanted(start=between))).isdisjoint(first)
    assert ids(world, Wanted(start=between))[:3] == both
    assert ids(world, Wanted(start=before, end=between)) == first
    assert ids(world, Wanted(end=before)) == []


def test_an_object_that_is_gone_hides_no_other(world: Any, make_record: Make) -> None:
    names = rejected(world, make_record, 2)
    (world.bucket / "parcels/dead-letters" / objects(world)[0]).unlink()
    assert ids(world) == names[:3]
    with pytest.raises(EverloopError) as caught:
        world.letters.get(world.pipeline, names[-1])
    assert caught.value.reason == "DEAD_LETTER_NOT_FOUND"


def test_after_a_fix_a_replay_is_accepted_with_its_own_time(
    world: Any, make_record: Make, spec: Any
) -> None:
    heavy = make_record("a", weight=99)
    world.send(0, heavy, make_record("b", weight=99), timestamp=1000)
    world.send(0, make_record("b", weight=2), timestamp=2000)  # newer than what was rejected
    world.settle_all()
    wider = copy.deepcopy(spec)
    wider["schema"]["fields"]["weight"]["max"] = 100
    wider["schema"]["freshness"] = {"max_ahead": "100000d"}
    world.pipeline = Pipeline.model_validate(wider)
    world.restart()
    answer = replay(world, "r1", which=Wanted(reason="OUT_OF_RANGE"))
    assert (answer.replayed, answer.skipped, answer.next_page_token) == (2, 0, "")
    assert world.relay(1) == 2
    again = world.topic[1][1]
    assert (again.value, again.key) == (heavy, b"key")
    assert dict(again.headers)[REPLAY_OF] == f"{TOPIC}/0/0".encode()
    assert dict(again.headers)["from"] == b"test"
    version = world.cut(world.pipeline, "v", 5.0)
    # The correction that came meanwhile still wins.
    assert {row["parcel"]: row["weight"] for row in world.rows(version)} == {"a": 99.0, "b": 2.0}
    kept = world.letters.get(world.pipeline, f"{TOPIC}/0/0")
    assert kept.replay.request_id == "r1"
    assert dead_letter(kept, world.pipeline, whole=False).HasField("replay_time")


def test_a_replay_that_is_rejected_again_names_its_original(world: Any) -> None:
    world.send(0, b"{", timestamp=1234)
    world.settle_all()
    replay(world, "r1", f"{TOPIC}/0/0")
    world.relay(1)
    world.settle_all()
    second = world.letters.get(world.pipeline, f"{TOPIC}/1/0")
    assert (second.replay_of, second.letter.timestamp) == (f"{TOPIC}/0/0", 1234)
    [listed] = [k for k in world.letters.page(world.pipeline, Wanted(), "", 9)[0] if k.replay_of]
    assert listed.id == second.id
    # It is a dead letter of its own, and may be replayed in its turn: with one link and one time.
    assert replay(world, "r2", second.id).replayed == 1
    world.relay(2)
    headers = [name for name, _ in world.topic[2][0].headers]
    assert (headers.count(REPLAY_OF), headers.count(SENT)) == (1, 1)
    assert dict(world.topic[2][0].headers)[REPLAY_OF] == second.id.encode()


def test_nothing_is_replayed_twice(world: Any, make_record: Make) -> None:
    names = rejected(world, make_record, 2)
    first = replay(world, "r1", names[0], names[0], names[3])
    assert (first.replayed, first.skipped) == (2, 0)
    world.restart()
    assert replay(world, "r1", names[0], names[0], names[3]) == first
    assert (replay(world, "r2").replayed, replay(world, "r3").skipped) == (4, 6)
    assert world.relay(0) == 6
    with pytest.raises(EverloopError) as caught:
        replay(world, "r1", names[1])
    assert (caught.value.kind, caught.value.reason) == (Kind.CONFLICT, "REQUEST_ID_REUSED")


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_replay_that_dies_is_done_once_by_its_repeat(
    world: Any, make_record: Make, crash: Any, when: str
) -> None:
    names = rejected(world, make_record, 1)
    store = world.letters._store
    with pytest.raises(crash(store, "replay", when)):
        replay(world, "r1")
    world.restart()
    assert replay(world, "r1").replayed == len(names)
    assert world.relay(0) == len(names)


def test_a_replay_goes_on_page_by_page_within_its_bytes(
    world: Any, make_record: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters, "_REPLAY_BYTES", 3)
    names = rejected(world, make_record, 3)
    token, seen, calls = "", 0, 0
    while True:
        answer = world.letters.replay(world.pipeline, f"r/{calls}", (), Wanted(), token, 4)
        seen, calls, token = seen + answer.replayed, calls + 1, answer.next_page_token
        if not token:
            break
    assert seen == len(names)
    assert calls > 3
    assert world.relay(0) == len(names)
    with pytest.raises(EverloopError) as caught:
        replay(world, "other", *names)
    assert caught.value.reason == "TOO_MANY_BYTES"


def test_what_is_too_large_stays(world: Any) -> None:
    world.send(0, b"x" * 5000, b"{")
    world.settle_all()
    answer = replay(world, "r1")
    assert (answer.replayed, answer.skipped) == (1, 1)
    assert world.letters.get(world.pipeline, f"{TOPIC}/0/0").letter.value == b"x" * 5000


def test_a_full_outbox_holds_replays_up(world: Any, make_record: Make) -> None:
    rejected(world, make_record, 1)
    world.letters._outbox_full = lambda: True
    with pytest.raises(EverloopError) as caught:
        replay(world, "r1")
    assert (caught.value.kind, caught.value.reason) == (Kind.EXHAUSTED, "OUTBOX_FULL")


@pytest.mark.parametrize(
    ("names", "which", "token", "reason"),
    [
        ([], Wanted(reason="BAD_LUCK"), "", "INVALID_FILTER"),
        (["x"], Wanted(reason="WRONG_TYPE"), "", "INVALID_FILTER"),
        (["x"] * 501, Wanted(), "", "INVALID_FILTER"),
        (["x"], Wanted(), "", "DEAD_LETTER_NOT_FOUND"),
        ([f"{TOPIC}/0/77"], Wanted(), "", "DEAD_LETTER_NOT_FOUND"),
        ([f"{TOPIC}/0/1"], Wanted(), "", "DEAD_LETTER_NOT_FOUND"),  # accepted
        (
            ["everloop.records.letters/0/0"],
            Wanted(),
            "",
            "DEAD_LETTER_NOT_FOUND",
        ),  # another pipeline's
        *(
            ([], Wanted(), token, "INVALID_PAGE")
            for token in ("x", "1", "1-", "-1-1", "1-1-1", "٣-1", "1" * 30)
        ),
    ],
)
def test_what_is_not_there_is_told(
    world: Any, make_record: Make, names: list[str], which: Wanted, token: str, reason: str
) -> None:
    world.send(0, b"{", make_record("a"), b"{")
    world.store_elsewhere(b"{")
    world.settle_all()
    with pytest.raises(EverloopError) as caught:
        world.letters.replay(world.pipeline, "r", names, which, token, 10)
    assert caught.value.reason == reason
    assert world.relay(0) == 0


def test_old_ones_are_let_go_of_as_many_as_go_at_once(
    world: Any, make_record: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters, "_EXPIRED_AT_ONCE", 2)
    names = rejected(world, make_record, 3)
    replay(world, "r1")
    now = datetime.now(UTC)
    assert world.letters.expire(now - timedelta(days=1)) == 0
    assert world.letters.expire(now) == 2
    assert (ids(world), len(objects(world))) == (names[:3], 1)
    assert (world.letters.expire(now), world.letters.expire(now)) == (1, 0)
    assert (ids(world), objects(world)) == ([], [])
    with world.database.read() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM replays").scalar_one() == 0


@pytest.mark.parametrize("step", ["delete", "forget"])
def test_letting_go_is_finished_after_a_crash(
    world: Any, make_record: Make, crash: Any, step: str
) -> None:
    rejected(world, make_record, 2)
    owner = world.files if step == "delete" else world.letters._store
    with pytest.raises(crash(owner, step, "after")):
        world.letters.expire(datetime.now(UTC))
    world.restart()
    world.letters.expire(datetime.now(UTC))
    assert (ids(world), objects(world)) == ([], [])


@given(st.lists(st.tuples(st.sampled_from([SENT, "other"]), st.none() | st.binary(max_size=25))))
def test_any_header_is_read_as_a_time_or_left_alone(
    headers: list[tuple[str, bytes | None]],
) -> None:
    found = sent_at(-1, headers)
    assert found == -1 or 0 <= found < 2**63


def test_a_filter_on_the_wire_is_what_it_says() -> None:
    message = pb.DeadLetterFilter(reason="WRONG_TYPE")
    message.start_time.FromJsonString("2026-03-01T12:00:00Z")
    assert wanted(message) == Wanted("WRONG_TYPE", datetime(2026, 3, 1, 12, tzinfo=UTC), None)
    message.end_time.seconds = 10**15
    with pytest.raises(EverloopError) as caught:
        wanted(message)
    assert caught.value.reason == "INVALID_FILTER"
