"""The rules that turn readings into alerts."""

from __future__ import annotations

from everloop_contracts.pipeline import Monitoring, PerformanceRule
from everloop_monitor.domain import FeatureDrift, Measurement, Readings, Report

__all__ = ["judge", "judge_performance"]

_ERRORS = ("rmse", "mae")


def judge(rule: Monitoring, readings: Readings, reference: float | None) -> Report:
    """Judges what was read from a chunk.

    A feature alerts when its distance is above the threshold; the chunk alerts when the share of alerting
    features reaches the limit. The reconstruction error alerts by itself and takes no part in the share.

    >>> rule = Monitoring()
    >>> report = judge(rule, Readings({"a": 0.3, "b": 0.05}), None)
    >>> [(d.feature, d.measurement.alert) for d in report.features], report.drift_share, report.drift_alert
    ([('a', True), ('b', False)], 0.5, True)
    """
    limit = rule.drift.threshold
    features = tuple(
        FeatureDrift(name, Measurement(rule.drift.method, value, upper=limit, alert=value > limit))
        for name, value in sorted(readings.distances.items(), key=lambda item: (-item[1], item[0]))
    )
    share = sum(f.measurement.alert for f in features) / len(features) if features else 0.0
    multivariate = None
    if readings.reconstruction_error is not None:
        upper = readings.reconstruction_limit
        multivariate = Measurement(
            "reconstruction_error",
            readings.reconstruction_error,
            upper=upper,
            alert=upper is not None and readings.reconstruction_error > upper,
        )
    return Report(
        features=features,
        drift_share=share,
        drift_alert=bool(features) and share >= rule.drift.share,
        multivariate=multivariate,
        estimated=judge_performance(rule.performance, readings.estimated, reference),
    )


def judge_performance(
    rule: PerformanceRule, value: float | None, reference: float | None
) -> Measurement | None:
    """Judges a performance against the reference sample's.

    Higher is better, except for rmse and mae, where the bound lies above the reference.

    >>> judge_performance(PerformanceRule(metric="roc_auc", max_loss=0.03), 0.64, 0.68)
    Measurement(measure='roc_auc', value=0.64, lower=0.65, upper=None, alert=True)
    """
    if value is None or reference is None:
        return None
    if rule.metric in _ERRORS:
        upper = reference + rule.max_loss
        return Measurement(rule.metric, value, upper=upper, alert=value > upper)
    lower = reference - rule.max_loss
    return Measurement(rule.metric, value, lower=lower, alert=value < lower)
