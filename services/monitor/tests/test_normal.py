"""What is normal, and how often what is normal alerts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from everloop_contracts.pipeline import DriftRule, Monitoring, QualityRule
from everloop_monitor.detect import benjamini_hochberg, judge
from everloop_monitor.domain import Normal, Reading, Readings
from everloop_monitor.normal import Spread, upper_bound, upper_tail

NORMAL = Normal(0.1, 0.02, 19)


def drift(value, feature="a", normal=NORMAL, segment=""):
    return Reading("drift", "hellinger", value, feature, segment, distance=True, normal=normal)


def report(*readings, watched=(), **rule):
    return judge(Monitoring(**rule), Readings(tuple(readings), frozenset(watched)))


@given(st.floats(1e-9, 0.5), st.floats(-5, 5), st.floats(1e-6, 10), st.integers(2, 40))
def test_the_bound_is_where_the_tail_begins(probability, mean, deviation, freedom):
    normal = Normal(mean, deviation, freedom)
    assert upper_tail(upper_bound(probability, normal), normal) == pytest.approx(probability)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.floats(0.001, 0.4))
def test_the_level_rejects_what_the_procedure_does(probabilities, rate):
    level = benjamini_hochberg(probabilities, rate)
    rejected = [p for p in probabilities if p <= level]
    ordered = sorted(probabilities)
    tests = len(ordered)
    wanted = max((k for k in range(1, tests + 1) if ordered[k - 1] <= k * rate / tests), default=0)
    assert len(rejected) == wanted or (wanted == 0 and not rejected)


def test_chance_shrinks_with_the_rows_and_the_world_does_not():
    rng = np.random.default_rng(3)
    chance = list(rng.normal(0.1, 0.01, 20))
    quiet = Spread(chance, chance, rows=500, total=10_000, distance=True)
    assert quiet.at(5000).mean < quiet.at(500).mean < quiet.at(50).mean
    seasons = [value + rng.choice([0.0, 0.3]) for value in chance]
    moving = Spread(seasons, chance, rows=500, total=10_000, distance=True)
    assert moving.at(100_000).mean > 0.1
    assert moving.at(100_000).deviation > quiet.at(500).deviation


def test_a_share_that_is_always_zero_has_the_error_of_chance():
    spread = Spread([0.0] * 20, [0.0] * 20, rows=500, total=10_000, distance=False)
    assert spread.at(500, error=0.003).deviation == 0.003


def test_features_like_the_sample_alert_as_rarely_as_promised():
    """Family-wise: any of 20 features in 2,000 chunks, of which 1 % may."""
    rng = np.random.default_rng(5)
    alarms = 0
    for _ in range(2_000):
        scale = np.sqrt(rng.chisquare(19) / 19)  # the deviation is itself an estimate
        normal = Normal(0.0, float(scale), 19)
        read = [drift(float(v), f"f{n}", normal) for n, v in enumerate(rng.normal(size=20))]
        alarms += any(f.measurement.alert for f in report(*read, false_alarms=0.01).features)
    assert 8 <= alarms <= 35


def test_one_of_many_features_that_left_its_bounds_is_named():
    read = [drift(0.1, f"f{n}") for n in range(20)]
    found = report(*read, drift(0.3, "gone"), drift={"share": 0.01})
    assert [f.feature for f in found.features if f.measurement.alert] == ["gone"]
    assert found.drift_alert
    assert not report(*read, drift(0.3, "gone"), drift={"share": 0.25}).drift_alert


def test_a_declared_threshold_is_the_threshold():
    rule = DriftRule(threshold=0.2)
    found = report(drift(0.25), drift(0.19, "b"), drift=rule)
    assert [(f.feature, f.measurement.alert) for f in found.features] == [("a", True), ("b", False)]


def test_a_reading_of_which_nothing_was_learned_never_alerts():
    found = report(Reading("output_drift", "chi2", 1e9), watched=["output_drift"])
    assert found.verdicts == {"output_drift": False}


@pytest.mark.parametrize(("value", "alert"), [(0.03, False), (0.06, True)])
def test_bad_values_are_told_from_the_tolerance_on(value, alert):
    read = Reading(
        "data_quality", "missing", value, "x", reference=0.01, normal=Normal(0.01, 0.001, 19)
    )
    found = report(read, watched=["data_quality"], quality=QualityRule(tolerance=0.04))
    assert found.verdicts == {"data_quality": alert}


def test_a_segment_is_told_by_its_name_and_takes_no_part_in_the_share():
    found = report(drift(0.1), drift(0.9, "a", segment="origin=EWR"), watched=["segment_drift"])
    assert (found.drift_share, found.verdicts) == (0.0, {"segment_drift": True})
    assert str(found.findings[0]).startswith("a in origin=EWR hellinger 0.9000 > ")
