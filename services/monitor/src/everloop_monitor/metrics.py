"""Every metric of the monitor. Labels are pipelines, their features and fixed words: bounded by the specs."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from everloop_monitor.domain import Chunk

__all__ = [
    "ACTUALS",
    "ALERTS",
    "DECISIONS",
    "DELETED",
    "EARLY_WARNINGS",
    "EVALUATE_SECONDS",
    "FAILURES",
    "LAG_SECONDS",
    "PREDICTIONS",
    "UNEVALUATED",
    "WAITING",
    "count_alerts",
    "show_drift",
    "show_realised",
]

PREDICTIONS = Counter(
    "everloop_monitor_predictions", "Logged predictions that were stored.", ["pipeline"]
)
ACTUALS = Counter("everloop_monitor_actuals", "Labels that were stored.", ["pipeline"])
DRIFT_SHARE = Gauge(
    "everloop_monitor_drift_share_ratio",
    "Share of the features that drifted in the newest chunk.",
    ["pipeline"],
)
DISTANCE = Gauge(
    "everloop_monitor_feature_distance",
    "Distance of a feature to the reference sample in the newest chunk.",
    ["pipeline", "feature"],
)
RECONSTRUCTION = Gauge(
    "everloop_monitor_reconstruction_error",
    "PCA reconstruction error of the newest chunk.",
    ["pipeline"],
)
ESTIMATED = Gauge(
    "everloop_monitor_estimated_performance",
    "Performance of the newest chunk, estimated without labels.",
    ["pipeline", "metric"],
)
REALISED = Gauge(
    "everloop_monitor_realised_performance",
    "Performance of the newest chunk whose labels have arrived.",
    ["pipeline", "metric"],
)
VERSION = Gauge(
    "everloop_monitor_chunk_model_version",
    "Model version of the newest evaluated chunk.",
    ["pipeline"],
)
ALERTS = Counter(
    "everloop_monitor_alerts",
    "Alerts of evaluated chunks, by what they are about.",
    ["pipeline", "condition"],
)
EARLY_WARNINGS = Counter(
    "everloop_monitor_early_warnings",
    "Features, and the score, that changed within a chunk that was not yet full.",
    ["pipeline", "feature"],
)
DECISIONS = Counter(
    "everloop_monitor_decisions",
    "Decisions of the retrain policy, by what was decided.",
    ["pipeline", "action"],
)
WAITING = Gauge(
    "everloop_monitor_waiting_chunks", "Full chunks that wait for their evaluation.", ["pipeline"]
)
LAG_SECONDS = Gauge(
    "everloop_monitor_lag_seconds",
    "How long the oldest full chunk of a version that is known has waited for its evaluation.",
    ["pipeline"],
)
EVALUATE_SECONDS = Histogram(
    "everloop_monitor_evaluate_duration_seconds",
    "Time to evaluate a chunk: drift (with the estimate, and the fit of a new version), realised.",
    ["stage"],
    buckets=(0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30),
)
UNEVALUATED = Counter(
    "everloop_monitor_unevaluated_chunks",
    "Full chunks that were closed without an evaluation: it failed too often, or their rows were deleted first.",
    ["pipeline"],
)
DELETED = Counter(
    "everloop_monitor_deleted",
    "What was deleted to stay within the bounds: predictions, labels, chunks, warnings, decisions, versions.",
    ["kind"],
)
FAILURES = Counter(
    "everloop_monitor_evaluation_failures",
    "Evaluations that failed; they are tried again, or given up.",
    ["pipeline"],
)


def count_alerts(before: Chunk, after: Chunk) -> None:
    """Counts what a chunk alerts on after an evaluation and did not before."""
    for condition in after.alerts:
        if not before.verdict(condition):
            ALERTS.labels(after.pipeline, condition).inc()


def show_drift(chunk: Chunk) -> None:
    """Sets the gauges to what a full chunk showed, unless its version is on trial: they are Production's."""
    report = chunk.report
    if report is None or not chunk.promoted:
        return
    VERSION.labels(chunk.pipeline).set(chunk.version)
    DRIFT_SHARE.labels(chunk.pipeline).set(report.drift_share)
    for drift in report.features:
        DISTANCE.labels(chunk.pipeline, drift.feature).set(drift.measurement.value)
    if report.multivariate:
        RECONSTRUCTION.labels(chunk.pipeline).set(report.multivariate.value)
    if report.estimated:
        ESTIMATED.labels(chunk.pipeline, report.estimated.measure).set(report.estimated.value)


def show_realised(chunk: Chunk) -> None:
    """Sets the gauge to the performance that a chunk's labels showed, unless its version is on trial."""
    if chunk.promoted and chunk.report and chunk.report.realised:
        realised = chunk.report.realised
        REALISED.labels(chunk.pipeline, realised.measure).set(realised.value)
