"""Old against new."""

from __future__ import annotations

import numpy as np
import pytest

from everloop.demo.evaluate import compare, metrics_of


def test_metrics_count_only_known_outcomes():
    late = np.array([1.0, 0.0, np.nan, 1.0, 0.0])
    scores = np.array([0.9, 0.1, 0.5, 0.4, 0.6])
    found = metrics_of(late, scores)
    assert found.rows == 4
    assert found.roc_auc == 0.75
    assert found.brier == pytest.approx(np.mean([0.01, 0.01, 0.36, 0.36]))


def test_metrics_of_nothing_and_of_one_outcome_have_no_auc():
    assert metrics_of(np.array([np.nan]), np.array([0.5])).rows == 0
    assert metrics_of(np.ones(3), np.full(3, 0.5)).roc_auc is None


def test_the_new_version_is_measured_only_on_what_it_has_not_learned_from(two_days):
    late = two_days.late
    first = int(np.searchsorted(two_days.month, 2, side="right"))
    learned = int(np.searchsorted(two_days.month, 6, side="right")) - 10  # June is in it, in part
    asked: list[tuple[int, int]] = []

    def perfect(start: int, stop: int):
        asked.append((start, stop))
        return np.nan_to_num(late[start:stop], nan=0.5)

    def ignorant(start: int, stop: int):
        return np.full(stop - start, 0.25)

    found = compare(two_days, first, learned, (1, 2), (ignorant, perfect))
    assert min(start for start, _ in asked) == first
    assert found.stale.rows == found.retrained.rows == int((~np.isnan(late[learned:])).sum())
    assert (found.stale.roc_auc, found.retrained.roc_auc) == (0.5, 1.0)
    assert [line.month for line in found.months] == list(range(3, 13))
    assert [line.month for line in found.months if line.unseen] == list(range(7, 13))
    assert all((line.retrained is not None) == line.unseen for line in found.months)
