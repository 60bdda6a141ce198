"""How records are cut into calls."""

from __future__ import annotations

import json
import math

from hypothesis import given
from hypothesis import strategies as st

from everloop import push
from everloop.push import BATCH_BYTES, batches
from everloop_contracts.grpc_client import MAX_MESSAGE_BYTES


@given(st.lists(st.integers(0, 12)), st.integers(1, 4))
def test_every_record_is_in_one_batch_in_order_within_both_bounds(sizes, rows):
    records = [bytes([number % 256]) * size for number, size in enumerate(sizes)]
    found = list(_cut(records, rows, limit=10))
    entries = sorted(
        entry
        for batch in found
        for entry in [
            *zip(batch.positions, batch.bodies, strict=True),
            *((item.position, item.record) for item in batch.refused),
        ]
    )
    assert entries == list(enumerate(records))
    for batch in found:
        assert 0 < len(batch) <= rows
        assert sum(map(len, batch.bodies)) <= 10
    refused = [item for batch in found for item in batch.refused]
    assert [len(item.record) > 10 for item in refused] == [True] * sum(s > 10 for s in sizes)
    assert {item.reason for item in refused} <= {"RECORD_TOO_LARGE"}


def _cut(records, rows, limit):
    before = push.BATCH_BYTES
    push.BATCH_BYTES = limit
    try:
        yield from batches(records, rows)
    finally:
        push.BATCH_BYTES = before


def test_a_full_batch_fits_a_message_with_room_for_its_framing():
    assert 2 * BATCH_BYTES < MAX_MESSAGE_BYTES


def test_a_record_that_cannot_be_written_is_refused_by_field():
    (batch,) = batches([{"a": 1}, {"a": math.inf}], 10)
    assert [json.loads(body) for body in batch.bodies] == [{"a": 1}]
    (refused,) = batch.refused
    assert (refused.position, refused.reason, refused.field) == (1, "WRONG_TYPE", "a")
