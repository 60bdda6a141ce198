"""The arithmetic of the benchmark of detection, and that its shifts begin where they say."""

from __future__ import annotations

import doctest
import math

import pytest
from bench.drift import __main__ as drift
from bench.drift.worlds import CHUNKS, ONSET, World, synthetic
from bench.monitor.traffic import events, world


def test_the_examples_hold() -> None:
    result = doctest.testmod(drift)
    assert (result.failed, result.attempted) == (0, 2)


def test_a_shift_that_nobody_told_is_told_never() -> None:
    assert drift.delay([True] * ONSET + [False] * (CHUNKS - ONSET)) == math.inf


def test_false_alarms_are_counted_where_nothing_has_changed() -> None:
    quiet = synthetic("quiet", 0)
    shifted = World("w", (), quiet.reference, quiet.chunks[:4], [False, False, True, True])
    assert drift.false_rate([shifted], [[True, False, True, False]]) == 50.0


@pytest.mark.parametrize("name", ["covariate, one segment", "label, sudden", "concept, sudden"])
def test_shifts_begin_at_the_onset_and_move_what_they_say(name: str) -> None:
    there = synthetic(name, 3)
    assert there.changed == [number >= ONSET for number in range(CHUNKS)]
    before, after = there.chunks[ONSET - 1], there.chunks[-1]
    late = after.target.mean() - before.target.mean()
    # How well the score explains the target.
    reason = [chunk.score.corr(chunk.target) for chunk in (before, after)]
    if name == "covariate, one segment":
        city = after[after.city == "C"]
        assert city.n4.mean() - after[after.city != "C"].n4.mean() > 0.3
    elif name == "label, sudden":
        assert late > 0.08
    else:
        assert abs(after.n4.mean() - before.n4.mean()) < 0.15
        assert reason[1] < reason[0] - 0.1


def test_traffic_holds_every_row_once() -> None:
    known = world(10, 1)
    sent = list(events(known, known.chunks[0], 5_000))
    ids = [one for event in sent for one in event.prediction_ids]
    assert ids == [f"00000000000000aa-{n:x}" for n in range(5_000, 10_000)]
    assert {column.name for column in sent[0].columns} == set(known.inputs)
