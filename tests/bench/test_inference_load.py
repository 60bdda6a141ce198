"""What wrk adds to latencies is taken out exactly."""

from __future__ import annotations

from collections import Counter

from bench.inference.load import uncorrected
from hypothesis import given
from hypothesis import strategies as st


def corrected_as_wrk_does(seen: list[int], expected: int) -> Counter[int]:
    """`stats_correct` of wrk 4.1."""
    counts = Counter(seen)
    for value in range(expected * 2, max(seen) + 1):
        count = counts[value]
        added = value - expected
        while count and added > expected:
            counts[added] += count
            added -= expected
    return +counts


@given(st.lists(st.integers(1, 400), min_size=1), st.integers(1, 100))
def test_the_latencies_come_back_as_they_were(seen: list[int], expected: int) -> None:
    found = uncorrected(sorted(corrected_as_wrk_does(seen, expected).items()), expected)
    assert dict(found) == Counter(seen)


def test_one_stall_does_not_set_the_p99() -> None:
    seen = [10] * 1000 + [5000]
    assert sum(corrected_as_wrk_does(seen, 15).values()) > 1300
    assert uncorrected(sorted(corrected_as_wrk_does(seen, 15).items()), 15) == [
        (10, 1000),
        (5000, 1),
    ]
