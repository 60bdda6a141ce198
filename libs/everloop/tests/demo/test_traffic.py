"""The client of the demo, against fakes of inference over real gRPC and HTTP."""

from __future__ import annotations

import time

import numpy as np
import pytest

from everloop.demo.traffic import DOORS, Traffic, door_of

MODEL = "flight-delays"
BATCH = 50


def replay(two_days, columns, addresses, *, requests: int, rate: float = 1e9, senders: int = 1):
    first = len(two_days) - requests * BATCH + 7  # the last request is not full
    traffic = Traffic(
        two_days, columns, first, addresses, MODEL, rate=rate, batch=BATCH, senders=senders
    )
    traffic.start()
    deadline = time.monotonic() + 60
    while not traffic.finished and time.monotonic() < deadline:
        time.sleep(0.01)
    traffic.stop()
    assert traffic.failure is None
    return first, traffic


def test_every_flight_is_asked_about_once_in_time_order(two_days, columns, addresses, fake):
    first, traffic = replay(two_days, columns, addresses, requests=32)
    asked = [id_ for _, ids in fake.asked for id_ in ids]
    assert len(asked) == len(two_days) - first
    by_row = two_days.frame["flight_id"].to_numpy()[first:]
    named = [row for row, id_ in enumerate(asked) if id_]  # tensors carry no record id
    assert [asked[row] for row in named] == [by_row[row] for row in named]
    assert len(named) == len(asked) - 4 * BATCH + 7
    assert traffic.position == len(two_days)


def test_all_doors_are_used_and_their_books_add_up(two_days, columns, addresses, fake):
    first, traffic = replay(two_days, columns, addresses, requests=32, senders=4)
    doors = traffic.tally.doors
    assert {name: doors[name].requests for name in DOORS} == {
        "grpc": 14,
        "http": 14,
        "oip_grpc": 2,
        "oip_http": 2,
    }
    assert traffic.tally.sent == len(two_days) - first
    assert traffic.tally.failed == 0
    assert all(len(door.seconds) == door.requests for door in doors.values())
    assert np.allclose(traffic.scores[first:], 0.75)
    assert (traffic.versions[first:] == 1).all()


def test_a_failure_is_counted_kept_in_words_and_stops_nothing(two_days, columns, addresses, fake):
    fake.fail = lambda number: number in (1, 2, 15, 16)  # each door once
    first, traffic = replay(two_days, columns, addresses, requests=32)
    assert {name: door.failed for name, door in traffic.tally.doors.items()} == dict.fromkeys(
        DOORS, BATCH
    )
    assert traffic.tally.sent == len(two_days) - first
    assert len(traffic.tally.errors) == 4
    assert all("broken on purpose" in error for error in traffic.tally.errors)
    assert np.isnan(traffic.scores[first : first + 2 * BATCH]).all()


def test_the_first_answer_of_a_new_version_is_noted(two_days, columns, addresses, fake):
    def swap_at_ten(number: int) -> bool:
        fake.version = 1 if number < 10 else 2
        return False

    fake.fail = swap_at_ten
    first, traffic = replay(two_days, columns, addresses, requests=32)
    assert traffic.tally.first[1].row == first
    assert traffic.tally.first[2].row == first + 9 * BATCH
    assert traffic.tally.first[1].time < traffic.tally.first[2].time
    wanted = two_days.frame["flight_id"][first + 10 * BATCH - 1]
    assert traffic.tally.ids[2] == f"p-{wanted}"


def test_the_pace_is_kept(two_days, columns, addresses):
    began = time.monotonic()
    replay(two_days, columns, addresses, requests=11, rate=500.0, senders=4)
    assert time.monotonic() - began >= 1.0  # the eleventh request is due after 10 × 50 / 500 s


def test_a_server_that_is_gone_is_failures_not_an_end(two_days, columns, addresses, fake):
    fake.fail = lambda number: True
    first, traffic = replay(two_days, columns, addresses, requests=16, senders=2)
    assert traffic.tally.failed == traffic.tally.sent == len(two_days) - first
    assert len(traffic.tally.errors) == 10


@pytest.mark.parametrize(
    ("number", "door"),
    [(0, "grpc"), (1, "http"), (14, "oip_grpc"), (15, "oip_http"), (31, "oip_http")],
)
def test_doors_take_turns(number, door):
    assert door_of(number) == door


def test_the_last_flights_are_spared_until_what_is_awaited_has_happened(
    two_days, columns, addresses, fake
):
    first = len(two_days) - 8 * BATCH
    traffic = Traffic(two_days, columns, first, addresses, MODEL, rate=1e4, batch=BATCH, senders=1)
    traffic.sparing = True
    paces = set()

    def released_at_the_last(number: int) -> bool:
        paces.add(traffic.pace)
        traffic.sparing = number < 8
        return False

    fake.fail = released_at_the_last
    traffic.start()
    deadline = time.monotonic() + 60
    while not traffic.finished and time.monotonic() < deadline:
        time.sleep(0.01)
    traffic.stop()
    assert traffic.finished
    assert paces == {1.0, 0.5, 1 / 8}
    assert traffic.pace == 1.0
