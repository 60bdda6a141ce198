"""The rules that turn readings into alerts.

Where the reference sample sets a limit, the readings of a condition are judged together by Benjamini and Hochberg's
procedure: a chunk that is like the sample has any alert of the condition with at most the probability `false_alarms`,
however many features and segments there are (under independence or positive dependence); and of the features that alert
at most that share is expected to be like the sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from everloop_contracts.metrics import LOWER_IS_BETTER
from everloop_contracts.pipeline import Monitoring, PerformanceRule
from everloop_monitor.domain import (
    Condition,
    FeatureDrift,
    Finding,
    Measurement,
    Normal,
    Reading,
    Readings,
    Report,
)
from everloop_monitor.normal import upper_bound, upper_tail

__all__ = ["benjamini_hochberg", "judge", "judge_performance", "judge_realised"]


def benjamini_hochberg(probabilities: Sequence[float], rate: float) -> float:
    """The level at and below which probabilities are rejected, so that the false discovery rate is at most `rate`.

    Controlling the false discovery rate in multiple testing, Benjamini and Hochberg, 1995.

    >>> benjamini_hochberg([0.001, 0.2, 0.019, 0.9], 0.04)
    0.02
    >>> benjamini_hochberg([0.5, 0.6], 0.04)
    0.02
    """
    tests = len(probabilities)
    ordered = sorted(probabilities)
    passed = [rank for rank, p in enumerate(ordered, start=1) if p <= rank * rate / tests]
    return max(passed, default=1) * rate / max(tests, 1)


def judge(rule: Monitoring, readings: Readings) -> Report:
    """Judges what was read from a full chunk.

    A feature alerts when its distance is above its limit; the chunk drifts when the share of alerting features reaches
    the pipeline's. Everything else is judged by itself and takes no part in the share.

    >>> from everloop_contracts.pipeline import DriftRule
    >>> rule = Monitoring(drift=DriftRule(threshold=0.1))
    >>> read = tuple(Reading("drift", "hellinger", v, feature=f) for f, v in (("a", 0.3), ("b", 0.05)))
    >>> report = judge(rule, Readings(read))
    >>> [(d.feature, d.measurement.alert) for d in report.features], report.drift_share, report.drift_alert
    ([('a', True), ('b', False)], 0.5, True)
    """
    drifted = _drifted(rule, readings.of("drift"))
    features = tuple(FeatureDrift(f.feature, f.measurement) for f in drifted)
    share = sum(f.measurement.alert for f in features) / len(features) if features else 0.0
    segments = [reading for reading in readings.items if reading.segment]
    findings = [
        *_beyond(rule, readings.of("multivariate_drift"), "multivariate_drift"),
        *_beyond(rule, readings.of("output_drift"), "output_drift"),
        *_beyond(rule, readings.of("data_quality"), "data_quality", rule.quality.tolerance),
        *(
            Finding("schema_skew", Measurement(r.measure, r.value, alert=True), r.feature)
            for r in readings.of("schema_skew")
        ),
        *_drifted(rule, [r for r in segments if r.condition == "drift"], "segment_drift"),
        *_segments(rule, [r for r in segments if r.condition == "estimated_performance"]),
    ]
    found = [f.measurement for f in findings if f.measurement.measure == "reconstruction_error"]
    return Report(
        features=features,
        drift_share=share,
        drift_alert=bool(features) and share >= rule.drift.share,
        multivariate=next(iter(found), None),
        estimated=judge_performance(rule.performance, readings.of("estimated_performance")),
        findings=_worth_keeping(findings),
        verdicts=_verdicts(readings, findings),
        severities={
            "drift": share / rule.drift.share,
            **_severities(rule, readings.items, findings),
        },
    )


def judge_realised(rule: Monitoring, readings: Readings, report: Report) -> Report:
    """The report of a chunk, with what its labels show."""
    segments = _segments(rule, [r for r in readings.items if r.segment])
    estimated = bool(report.verdicts.get("segment_performance"))
    verdicts = _verdicts(readings, segments)
    if "segment_performance" in report.verdicts:
        verdicts["segment_performance"] = estimated or bool(verdicts.get("segment_performance"))
    return replace(
        report,
        realised=judge_performance(rule.performance, readings.of("realised_performance")),
        findings=(*report.findings, *_worth_keeping(segments)),
        verdicts={**report.verdicts, **verdicts},
        severities={**report.severities, **_severities(rule, readings.items, segments)},
    )


def _drifted(
    rule: Monitoring, readings: Sequence[Reading], condition: Condition = "drift"
) -> list[Finding]:
    """Distances against the pipeline's threshold, or what is normal; the strongest first."""
    limit = rule.drift.threshold
    if limit is None:
        findings = _beyond(rule, readings, condition)
    else:
        findings = [
            Finding(
                condition,
                Measurement(r.measure, r.value, upper=limit, alert=r.value > limit),
                r.feature,
                r.segment,
            )
            for r in readings
        ]
    return sorted(findings, key=_strength)


def _strength(finding: Finding) -> tuple[float, str, str]:
    """How far beyond its limit, strongest first: distances of different methods are not comparable."""
    measured = finding.measurement
    return -measured.value / (measured.upper or 1.0), finding.feature, finding.segment


def _beyond(
    rule: Monitoring, readings: Sequence[Reading], condition: Condition, tolerance: float = 0.0
) -> list[Finding]:
    """Readings against what is normal, all of them together; one for which nothing was learned never alerts.

    With a tolerance a reading must also be that much larger than the reference sample's.
    """
    known = [(r, r.normal) for r in readings if r.normal is not None]
    level = benjamini_hochberg([upper_tail(r.value, n) for r, n in known], rule.false_alarms)
    findings = []
    for reading in readings:
        upper = None
        if reading.normal is not None:
            upper = upper_bound(level, reading.normal)
            if tolerance:
                upper = max(upper, (reading.reference or 0.0) + tolerance)
        alert = upper is not None and reading.value > upper
        measured = Measurement(reading.measure, reading.value, upper=upper, alert=alert)
        findings.append(Finding(condition, measured, reading.feature, reading.segment))
    return findings


def judge_performance(rule: PerformanceRule, readings: Sequence[Reading]) -> Measurement | None:
    """Judges a performance against the reference sample's; None where it was not read.

    >>> read = [Reading("realised_performance", "roc_auc", 0.64, reference=0.68)]
    >>> judge_performance(PerformanceRule(metric="roc_auc", max_loss=0.03), read)
    Measurement(measure='roc_auc', value=0.64, lower=0.65, upper=None, alert=True)
    """
    for reading in readings:
        if reading.reference is not None:
            return _measured(rule, reading, reading.reference, rule.max_loss)
    return None


def _measured(
    rule: PerformanceRule, reading: Reading, reference: float, loss: float
) -> Measurement:
    """Higher is better, except for errors and costs, where the bound lies above the reference."""
    value = reading.value
    if rule.metric in LOWER_IS_BETTER:
        upper = reference + loss
        return Measurement(rule.metric, value, upper=upper, alert=value > upper)
    lower = reference - loss
    return Measurement(rule.metric, value, lower=lower, alert=value < lower)


def _segments(rule: Monitoring, readings: Sequence[Reading]) -> list[Finding]:
    """Performance of segments: each loses more than is tolerated, and than chance explains in so few rows."""
    performance = rule.performance
    sign = 1.0 if performance.metric in LOWER_IS_BETTER else -1.0
    known = [
        (r, r.reference, Normal(sign * r.normal.mean, r.normal.deviation, r.normal.freedom))
        for r in readings
        if r.normal is not None and r.reference is not None
    ]
    tails = [upper_tail(sign * r.value, normal) for r, _, normal in known]
    level = benjamini_hochberg(tails, rule.false_alarms)
    findings = []
    for reading, reference, normal in known:
        by_chance = upper_bound(level, normal) - sign * reference
        measured = _measured(performance, reading, reference, max(performance.max_loss, by_chance))
        findings.append(Finding("segment_performance", measured, segment=reading.segment))
    return findings


def _severities(
    rule: Monitoring, readings: Sequence[Reading], findings: Sequence[Finding]
) -> dict[Condition, float]:
    """How many times what is tolerated was reached: the loss by the tolerated one, else the value by its limit."""
    performance = rule.performance
    sign = 1.0 if performance.metric in LOWER_IS_BETTER else -1.0
    found: dict[Condition, float] = {
        r.condition: sign * (r.value - r.reference) / performance.max_loss
        for r in readings
        if not r.segment and "performance" in r.condition and r.reference is not None
    }
    for finding in findings:
        measured = finding.measurement
        if measured.lower is not None:
            severity = 1 + (measured.lower - measured.value) / performance.max_loss
        elif measured.upper:
            severity = measured.value / measured.upper
        else:
            severity = float(measured.alert)
        found[finding.condition] = max(severity, found.get(finding.condition, 0.0))
    return found


def _verdicts(readings: Readings, findings: Sequence[Finding]) -> dict[Condition, bool]:
    """Whether each condition that was looked at alerts; drift and performance are judged apart."""
    alerting = {f.condition for f in findings if f.measurement.alert}
    apart = {"drift", "estimated_performance", "realised_performance"}
    return {name: name in alerting for name in sorted(readings.watched) if name not in apart}


def _worth_keeping(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    return tuple(f for f in findings if f.measurement.alert or not f.feature)
