"""Predictions are counted into chunks exactly once, whatever batches they come in."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from everloop_contracts.stubs.everloop.inference.v1.events_pb2 import Column
from everloop_monitor.adapters.store import chunks, labels, predictions, versions
from everloop_monitor.batches import find, pack, read_rows
from everloop_monitor.domain import Chunk, span_of, spans_of
from everloop_monitor.record import log_predictions, record_actuals, watch_version
from everloop_monitor.stream import Stream, cut
from everloop_runtime.errors import EverloopError

NOW = datetime(2013, 5, 1, tzinfo=UTC)


@given(sizes=st.lists(st.integers(0, 350), max_size=30), chunk_rows=st.integers(1, 120))
def test_chunks_are_whole_and_adjacent_whatever_the_batches(sizes, chunk_rows):
    stream, starts = Stream(), []
    for size in sizes:
        stream, new = cut(stream, size, chunk_rows)
        starts += new
    assert starts == [n * chunk_rows for n in range(sum(sizes) // chunk_rows)]
    assert stream == Stream(sum(sizes), len(starts), len(starts) * chunk_rows)


def due(connection: sa.Connection, pipeline: str) -> Chunk | None:
    return next(iter(chunks.next_full(connection, pipeline, [], 1)), None)


def test_a_changed_chunk_size_starts_where_the_last_chunk_ended():
    stream, _ = cut(Stream(), 250, 100)
    assert cut(stream, 10, 50) == (Stream(260, 3, 250), [200])


def full_chunks(database, pipeline, version=1):
    with database.unit_of_work() as work:
        versions.set_production(work.connection, pipeline.name, version, "run", NOW)
    found: list[Chunk] = []
    while True:
        with database.read() as connection:
            chunk = due(connection, pipeline.name)
        if chunk is None:
            return found
        found.append(chunk)
        with database.unit_of_work() as work:
            chunks.save_evaluation(work.connection, chunk, before=chunks.FULL, after=chunks.CLOSED)


def test_a_chunk_holds_its_rows_in_order_across_batches(database, pipeline, make_batch):
    for number, (first, rows) in enumerate([(0, 70), (70, 70), (140, 80)]):
        log_predictions(database, f"event-{number}", make_batch(first, rows), 100, NOW)
    one, two = full_chunks(database, pipeline)
    assert (one.id, one.cause, two.id, two.cause) == (
        "trips/1/0",
        "event-1",
        "trips/1/1",
        "event-2",
    )
    with database.read() as connection:
        batches = predictions.of_chunk(connection, two)
    read = read_rows(pipeline, batches, two.first_row, two.rows)
    assert read.record_ids == [f"r{n}" for n in range(100, 200)]
    assert len(read) == 100


def test_a_repeated_event_changes_nothing(database, pipeline, make_batch):
    for _ in range(3):
        log_predictions(database, "same", make_batch(0, 100), 100, NOW)
    assert [chunk.id for chunk in full_chunks(database, pipeline)] == ["trips/1/0"]
    with database.read() as connection:
        assert predictions.stream(connection, "trips", 1) == Stream(100, 1, 100)


def test_versions_are_counted_apart(database, pipeline, make_batch):
    log_predictions(database, "a", make_batch(0, 60, version=1), 100, NOW)
    log_predictions(database, "b", make_batch(60, 60, version=2), 100, NOW)
    assert full_chunks(database, pipeline) == []


def test_a_version_nobody_promoted_waits(database, pipeline, make_batch):
    log_predictions(database, "a", make_batch(0, 100, version=7), 100, NOW)
    watch_version(database, "p", "trips", 6, "run-6", NOW)
    with database.read() as connection:
        assert due(connection, "trips") is None
    watch_version(database, "q", "trips", 7, "run-7", NOW)
    with database.read() as connection:
        chunk = due(connection, "trips")
        assert versions.production(connection, "trips") == 7
    assert chunk is not None
    assert chunk.run_id == "run-7"


def test_a_ragged_batch_is_refused_and_leaves_nothing(database, make_batch):
    message = make_batch(0, 10)
    del message.columns[1].numbers[9:]
    with pytest.raises(EverloopError) as caught:
        log_predictions(database, "a", message, 100, NOW)
    assert (caught.value.reason, caught.value.metadata) == ("MALFORMED_BATCH", {"field": "x"})
    with database.read() as connection:
        assert predictions.stream(connection, "trips", 1) == Stream(0, 0, 0)


def drop_scores(message):
    del message.scores[:]


def no_time(message):
    message.time_micros[3] = 2**62


def no_column(message):
    message.columns.add(name="extra")


def two_kinds(message):
    message.columns[2].numbers.extend([1.0] * 9)


@pytest.mark.parametrize(
    ("spoil", "field"),
    [(drop_scores, "scores"), (no_time, "time_micros"), (no_column, "extra"), (two_kinds, "city")],
)
def test_what_the_contract_does_not_allow_is_refused(database, make_batch, spoil, field):
    message = make_batch(0, 10)
    spoil(message)
    with pytest.raises(EverloopError) as caught:
        log_predictions(database, "a", message, 100, NOW)
    assert (caught.value.reason, caught.value.metadata) == ("MALFORMED_BATCH", {"field": field})
    # Mended and sent again under the same id, it is not taken for a repeat.
    log_predictions(database, "a", make_batch(0, 10), 100, NOW)
    with database.read() as connection:
        assert predictions.stream(connection, "trips", 1).rows == 10


def test_a_batch_may_leave_out_record_ids(database, pipeline, make_batch):
    """What inference sends where no caller gave one."""
    log_predictions(database, "a", make_batch(0, 60, records=()), 100, NOW)
    log_predictions(database, "b", make_batch(60, 60), 100, NOW)
    watch_version(database, "p", "trips", 1, "run-1", NOW)
    with database.read() as connection:
        chunk = due(connection, "trips")
        assert chunk is not None
        read = read_rows(pipeline, predictions.of_chunk(connection, chunk), 0, 100)
        (batch,) = predictions.covering(connection, span_of("00000000000000aa-5"))
    assert read.record_ids == [""] * 60 + [f"r{n}" for n in range(60, 100)]
    found = find(batch, "00000000000000aa-5")
    assert found is not None
    assert found.record_id == ""


def test_a_multiclass_batch_has_probabilities_and_no_scores(database, pipeline, make_batch):
    message = make_batch(0, 100)
    del message.scores[:]
    message.probabilities.extend([0.2, 0.3, 0.5] * 100)
    log_predictions(database, "a", message, 100, NOW)
    with database.read() as connection:
        (batch,) = predictions.covering(connection, span_of("00000000000000aa-5"))
    assert read_rows(pipeline, [batch], 0, 100).scores.tolist() == [0.0] * 100
    found = find(batch, "00000000000000aa-5")
    assert found is not None
    assert found.score == 0.0


def test_event_times_come_from_the_wall_clock_of_the_fields_zone(database, pipeline, make_batch):
    message = make_batch(0, 100)
    summer = (datetime(2013, 7, 1, 8, 30) - datetime(1970, 1, 1)).total_seconds()
    message.columns[0].numbers[:] = [summer + 60 * n for n in range(100)]
    log_predictions(database, "a", message, 100, NOW)
    (chunk,) = full_chunks(database, pipeline)
    with database.read() as connection:
        rows = read_rows(pipeline, predictions.of_chunk(connection, chunk), 0, 100)
    assert rows.first_event == datetime(2013, 7, 1, 12, 30, tzinfo=UTC)
    assert rows.last_event == datetime(2013, 7, 1, 14, 9, tzinfo=UTC)


def test_without_a_time_column_the_answers_time_counts(database, pipeline, make_batch):
    message = make_batch(10, 100)
    del message.columns[0]
    log_predictions(database, "a", message, 100, NOW)
    (chunk,) = full_chunks(database, pipeline)
    with database.read() as connection:
        rows = read_rows(pipeline, predictions.of_chunk(connection, chunk), 0, 100)
    assert rows.first_event == datetime(1970, 1, 1, 0, 0, 10, tzinfo=UTC)
    assert rows.last_event == datetime(1970, 1, 1, 0, 1, 49, tzinfo=UTC)


def test_times_that_no_calendar_holds_say_nothing(database, pipeline, make_batch):
    """A client's tensor may hold any number, and must not spoil the chunk of the others."""
    message = make_batch(0, 100)
    message.columns[0].numbers[0] = 9e18
    message.columns[0].numbers[1] = -9e18
    log_predictions(database, "a", message, 100, NOW)
    (chunk,) = full_chunks(database, pipeline)
    with database.read() as connection:
        rows = read_rows(pipeline, predictions.of_chunk(connection, chunk), 0, 100)
    assert rows.first_event == datetime(1970, 1, 1, 5, 2, tzinfo=UTC)
    assert rows.last_event == datetime(1970, 1, 1, 6, 39, tzinfo=UTC)


def test_columns_of_another_type_and_infinite_numbers_are_null(database, pipeline, make_batch):
    """The type of a field may have changed since; a tensor may hold infinity."""
    message = make_batch(0, 3)
    message.columns[1].numbers[1] = float("-inf")
    message.columns[2].CopyFrom(Column(name="city", numbers=[1.0, 2.0, 3.0]))
    message.columns[3].CopyFrom(Column(name="paid", texts=["true", "", "false"]))
    log_predictions(database, "a", message, 3, NOW)
    (chunk,) = full_chunks(database, pipeline)
    with database.read() as connection:
        rows = read_rows(pipeline, predictions.of_chunk(connection, chunk), 0, 3)
    np.testing.assert_array_equal(rows.numbers["x"], [0.0, np.nan, 0.0])
    assert list(rows.texts["city"]) == list(rows.texts["paid"]) == ["", "", ""]


def test_nulls_and_missing_columns_are_null(database, pipeline, make_batch):
    message = make_batch(0, 3)
    message.columns[1].numbers[1] = float("nan")
    message.columns[3].numbers[:] = [0.0, float("nan"), 1.0]
    del message.columns[2]
    log_predictions(database, "a", message, 3, NOW)
    (chunk,) = full_chunks(database, pipeline)
    with database.read() as connection:
        rows = read_rows(pipeline, predictions.of_chunk(connection, chunk), 0, 3)
    np.testing.assert_array_equal(rows.numbers["x"], [0.0, np.nan, 0.0])
    assert list(rows.texts["city"]) == ["", "", ""]
    assert list(rows.texts["paid"]) == ["false", "", "true"]


@given(data=st.data())
def test_every_prediction_is_found_by_its_id_and_no_other(data, make_batch):
    ids = data.draw(
        st.lists(
            st.one_of(
                st.builds(
                    "{}-{:x}".format,
                    st.sampled_from(["00000000000000aa", "00000000000000bb"]),
                    st.integers(0, 2**59),
                ),
                st.text(min_size=1, max_size=8),
                st.just("00000000000000aa-5\n"),
            ),
            min_size=1,
            max_size=20,
            unique=True,
        )
    )
    message = make_batch(0, len(ids))
    message.prediction_ids[:] = ids
    batch, spans = pack("event", 0, message), spans_of(ids)
    for row, one in enumerate(ids):
        place = span_of(one)
        assert any(
            s.epoch == place.epoch and s.first <= place.first and s.last >= place.last
            for s in spans
        )
        found = find(batch, one)
        assert found is not None
        assert found.record_id == f"r{row}"
    assert find(batch, "never made") is None


def test_the_last_label_of_a_record_wins(database):
    record_actuals(database, "a", "trips", ["r1", "r2", "r1"], ["true", "true", "false"], NOW)
    record_actuals(database, "b", "trips", ["r2"], ["false"], NOW)
    record_actuals(database, "a", "trips", ["r1"], ["true"], NOW)  # a repeat
    record_actuals(database, "c", "other", ["r3"], ["true"], NOW)
    with database.read() as connection:
        known = labels.known(connection, "trips", ["r1", "r2", "r3", ""])
    assert known == {"r1": "false", "r2": "false"}
