"""Chunks that are slow to fill are looked at before they are full."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from everloop_monitor.adapters.river import Changes
from everloop_monitor.adapters.store import warnings
from everloop_monitor.detectors import Sample
from everloop_monitor.warn import Lookout


def sample(rng, rows, shift=0.0, at=0):
    moved = np.arange(rows) >= at
    numbers = {
        "a": rng.normal(0, 1, rows) + shift * moved,
        "b": np.where(rng.random(rows) < 0.1, np.nan, rng.lognormal(0, 3, rows)),
    }
    city = np.where(moved & (shift > 0), 3, rng.integers(1, 4, rows))
    none = np.zeros(rows)
    categories = {"city": pd.Index(["", "X", "Y", "Z"])}
    return Sample(numbers, {"city": city}, rng.random(rows), none, none, categories, pd.Index([]))


@pytest.fixture(scope="module")
def changes():
    return Changes(sample(np.random.default_rng(1), 5_000), false_alarms=0.01)


def test_rows_like_the_sample_change_nothing(changes):
    assert [changes.found(sample(np.random.default_rng(n), 2_000)) for n in range(2, 12)] == [
        {}
    ] * 10


@pytest.mark.parametrize("at", [0, 500, 1_500])
def test_a_shift_is_seen_soon_after_it_began_and_only_where_it_is(changes, at):
    found = changes.found(sample(np.random.default_rng(20), 2_000, shift=1.5, at=at))
    assert set(found) == {"a"}
    assert at < found["a"] <= at + 200


def test_missing_values_are_skipped(changes):
    rows = sample(np.random.default_rng(21), 300)
    rows.numbers["a"][:] = np.nan
    assert "a" not in changes.found(rows)


@pytest.fixture
def monitor_of_slow_chunks(monitor):
    """A monitor that is told of every early warning."""
    lookout = Lookout(
        monitor.database, {"trips": monitor.pipeline}, monitor.detectors, lambda: monitor.now
    )

    def look():
        assert not lookout.look()
        with monitor.database.read() as connection:
            return [str(warning) for _, warning in warnings.newest(connection, "trips", None, 10)]

    return monitor, look


def test_a_feature_that_changed_in_an_open_chunk_is_told_once(monitor_of_slow_chunks):
    monitor, look = monitor_of_slow_chunks
    monitor.chunk_rows = 1_000
    monitor.predict(99, x=0.9)
    assert look() == [], "too few rows"
    monitor.predict(101, x=0.9)
    told = ["x changed, seen after 1 of 200 rows"]
    assert look() == told
    monitor.predict(200, x=0.9)
    assert look() == told
    monitor.predict(600, x=0.9)
    assert look() == told, "no open chunk is left"
    monitor.predict(150, x=0.9)
    assert len(look()) == 2, "the next chunk is another one"


def test_a_version_whose_sample_cannot_be_had_gives_no_warning(monitor_of_slow_chunks):
    monitor, look = monitor_of_slow_chunks
    monitor.chunk_rows = 1_000
    monitor.detectors.failing.add(1)
    monitor.predict(200, x=0.9)
    assert look() == []
    monitor.detectors.failing.clear()
    assert look() != [], "it is tried again"


def test_only_the_version_in_production_warns(monitor_of_slow_chunks):
    monitor, look = monitor_of_slow_chunks
    monitor.chunk_rows = 1_000
    monitor.predict(200, x=0.9, version=2)
    assert look() == []
