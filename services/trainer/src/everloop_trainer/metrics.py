"""Every metric of the trainer."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

__all__ = ["DURATION", "TRAININGS", "TRIALS"]

TRAININGS = Gauge("everloop_trainings", "Trainings by state.", ["pipeline", "state"])
DURATION = Histogram(
    "everloop_training_duration_seconds",
    "Time from the start of a training to the logged model.",
    ["pipeline"],
    buckets=(5, 10, 20, 30, 45, 60, 90, 120, 300, 600, 1800, 3600),
)
TRIALS = Counter(
    "everloop_training_trials", "Trials that have ended.", ["pipeline", "family", "outcome"]
)
