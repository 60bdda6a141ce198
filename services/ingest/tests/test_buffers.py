"""What waits to be settled is split, due and held up by arithmetic alone."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everloop_ingest.buffers import Buffer, Limits, blocked

LIMITS = Limits(
    shard_rows=3,
    shard_bytes=2000,
    shard_age_seconds=10.0,
    batch_bytes=1000,
    buffer_rows=10,
    buffer_bytes=10_000,
    backlog=1,
    workers=1,
)


def message(offset: int, length: int = 0) -> Any:
    return SimpleNamespace(offset=offset, value=b"x" * length)


def buffer(*messages: Any) -> Buffer:
    made = Buffer(1, 0, 0, opened=0.0)
    if messages:
        made.add(messages, 5.0)
    return made


@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(0, 2000)), min_size=1, max_size=9),
    st.integers(1, 6000),
)
def test_what_is_split_off_follows_without_a_gap(steps: list[tuple[int, int]], most: int) -> None:
    offset, messages = -1, []
    for step, length in steps:
        offset += step
        messages.append(message(offset, length))
    whole = buffer(*messages)
    end, size = whole.end, whole.size
    rest = whole.split(most, 7.0)
    assert (whole.start, whole.end, rest.end) == (0, rest.start, end)
    assert whole.messages + rest.messages == messages
    assert whole.size + rest.size == size
    assert all(item.offset < whole.end for item in whole.messages)
    assert all(item.offset >= rest.start for item in rest.messages)
    assert len(whole.messages) == 1 or whole.size <= most
    if rest.messages:  # one more would have been too much
        assert whole.size + 512 + len(rest.messages[0].value or b"") > most
    assert (whole.opened, rest.opened) == (5.0, 7.0)


def test_control_records_between_two_messages_go_with_the_first() -> None:
    whole = buffer(message(0), message(7))
    rest = whole.split(1, 0.0)
    assert (whole.start, whole.end, rest.start, rest.end) == (0, 7, 7, 8)


@pytest.mark.parametrize(
    ("messages", "now", "due"),
    [
        ([], 1e9, False),
        ([message(0)], 14.9, False),
        ([message(0)], 15.0, True),
        ([message(0), message(1)], 5.0, False),
        ([message(0), message(1), message(2)], 5.0, True),
        ([message(0, 1487)], 5.0, False),
        ([message(0, 1488)], 5.0, True),
    ],
)
def test_a_batch_is_due_by_rows_bytes_and_age(messages: list[Any], now: float, due: bool) -> None:
    assert buffer(*messages).due(LIMITS, now) is due


def test_what_the_log_has_left_is_due_at_once_and_control_records_alone_by_age() -> None:
    assert replace(buffer(), adrift=True).due(LIMITS, 0.0)
    passed = replace(buffer(), end=3)
    assert [passed.due(LIMITS, now) for now in (9.9, 10.0)] == [False, True]


def test_age_counts_from_the_first_message_that_waits() -> None:
    some = buffer(message(0))
    some.add([message(1)], 100.0)
    assert some.opened == 5.0


@pytest.mark.parametrize(
    ("before", "rows", "size", "held"),
    [
        (False, 9, 9999, False),
        (False, 10, 0, True),
        (False, 0, 10_000, True),
        (True, 6, 0, True),
        (True, 0, 5001, True),
        (True, 5, 5000, False),
    ],
)
def test_reading_stops_at_the_limit_and_goes_on_at_half(
    before: bool, rows: int, size: int, held: bool
) -> None:
    assert blocked(before, rows, size, LIMITS) is held
