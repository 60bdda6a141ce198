"""What the registry's benchmark makes of the times that it took."""

from __future__ import annotations

import pytest
from bench.registry import figure_of, rate_ratio


def test_rates_and_percentiles_are_medians_over_rounds() -> None:
    steady, slow_once = [0.01] * 100, [0.01] * 95 + [0.1] * 5
    figure = figure_of([steady, steady, slow_once])
    assert figure == {"calls": 300, "per second": 100.0, "p50 ms": 10.0, "p99 ms": 10.0}
    assert figure_of([slow_once])["p99 ms"] == pytest.approx(100.0)


def test_a_ratio_says_how_many_of_ours_fit_into_one_of_theirs() -> None:
    assert rate_ratio([[0.01, 0.03]], [[0.08]]) == pytest.approx(4.0)
