"""Records as Protobuf: the same rows and the same reasons as in JSON."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from everloop_contracts.pipeline import Pipeline
from everloop_contracts.stubs.everloop.ingest.v1.record_pb2 import Record
from everloop_ingest.dead_letters import Wanted
from everloop_ingest.domain import Reason
from everloop_ingest.formats import is_protobuf
from everloop_ingest.validate import Validator

HEADER = ("content-type", b"application/x-protobuf")


def protobuf(row: dict[str, Any]) -> bytes:
    """A record as a producer of Protobuf writes it."""
    record = Record()
    for name, value in row.items():
        slot = record.fields[name]
        match value:
            case None:
                continue
            case bool():
                slot.bool_value = value
            case int():
                slot.int_value = value
            case float():
                slot.float_value = value
            case datetime():
                slot.timestamp_value.FromDatetime(value)
            case _:
                slot.string_value = value
    return record.SerializeToString()


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    texts,
)
rows = st.dictionaries(st.sampled_from(["parcel", "weight", "zone", "lost", "colour"]), values)
times = st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 29)).map(lambda t: t.replace(tzinfo=UTC))


@given(st.lists(st.tuples(rows, st.none() | times, st.booleans()), max_size=6))
def test_protobuf_is_judged_as_json_is(pipeline: Pipeline, items: list[Any]) -> None:
    check = Validator(pipeline, 4096)
    whole = [row | ({"sent": time} if time else {}) for row, time, _ in items]
    json = [orjson.dumps(row) for row in whole]
    mixed = [
        protobuf(row) if item[2] and row else body
        for row, body, item in zip(whole, json, items, strict=True)
    ]
    positions = {
        n for n, (row, item) in enumerate(zip(whole, items, strict=True)) if item[2] and row
    }
    one, other = check(json, [0] * len(json)), check(mixed, [0] * len(json), positions)
    assert other.rows.equals(one.rows)
    assert other.actuals.equals(one.actuals)
    # Of several broken fields the first in the schema is told, of unknown ones any.
    assert [(r.row, r.reason) for r in other.rejections] == [
        (r.row, r.reason) for r in one.rejections
    ]


@pytest.mark.parametrize(
    ("body", "reason", "field"),
    [
        (b"{", Reason.MALFORMED_PROTOBUF, ""),
        (b'{"parcel": "a"}', Reason.MALFORMED_PROTOBUF, ""),
        (b"\x10\x01", Reason.MALFORMED_PROTOBUF, ""),  # a message of another type
        (b"", Reason.MALFORMED_JSON, ""),
        (protobuf({"parcel": "a", "weight": float("nan")}), Reason.MISSING_FIELD, "sent"),
        (
            protobuf({"parcel": "a", "sent": datetime.now(UTC), "weight": float("nan")}),
            Reason.OUT_OF_RANGE,
            "weight",
        ),
        (
            protobuf({"parcel": "a", "sent": datetime.now(UTC), "weight": float("inf")}),
            Reason.OUT_OF_RANGE,
            "weight",
        ),
    ],
    # Not the bytes: they hold the time and a map in any order, and all workers must name the tests alike.
    ids=itertools.count(),
)
def test_what_is_no_record_is_told(
    pipeline: Pipeline, body: bytes, reason: Reason, field: str
) -> None:
    [rejection] = Validator(pipeline, 4096)([body], None, {0}).rejections
    assert (rejection.reason, rejection.field) == (reason, field)


def test_a_time_beyond_the_calendar_is_no_time(pipeline: Pipeline) -> None:
    record = Record.FromString(protobuf({"parcel": "a", "weight": 1.0}))
    record.fields["sent"].timestamp_value.seconds = 2**60
    [rejection] = Validator(pipeline, 4096)([record.SerializeToString()], None, {0}).rejections
    assert (rejection.reason, rejection.field) == (Reason.WRONG_TYPE, "sent")


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ([HEADER], True),
        ([("Content-Type", b"Application/Protobuf; proto=everloop.ingest.v1.Record")], True),
        ([("content-type", b"application/json")], False),
        ([("content-type", None), HEADER], True),
        ([("traceparent", b"application/x-protobuf")], False),
        ([], False),
    ],
)
def test_the_header_says_what_the_body_is(
    headers: list[tuple[str, bytes | None]], found: bool
) -> None:
    assert is_protobuf(headers) is found


def test_both_formats_share_a_topic(world: Any, make_record: Callable[..., bytes]) -> None:
    row = {"parcel": "p", "sent": datetime(2026, 3, 1, tzinfo=UTC), "weight": 2, "lost": True}
    world.send(0, make_record("j"), protobuf(row), protobuf(row | {"weight": -1}))
    for offset in (1, 2):
        world.topic[0][offset] = replace(world.topic[0][offset], headers=[HEADER])
    version = world.cut(world.pipeline, "r", 5.0)
    assert {item["parcel"]: item["weight"] for item in world.rows(version)} == {"j": 1.0, "p": 2.0}
    [(value, headers)] = world.dead_letters()
    assert (value, headers["everloop-reason"]) == (protobuf(row | {"weight": -1}), "OUT_OF_RANGE")
    # A replay says what it is as well.
    [kept] = world.letters.page(world.pipeline, Wanted(), "", 9)[0]
    world.letters.replay(world.pipeline, "r", [kept.id], Wanted(), "", 9)
    world.relay(1)
    assert is_protobuf(world.topic[1][0].headers)
