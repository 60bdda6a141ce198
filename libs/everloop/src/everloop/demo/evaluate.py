"""Old against new: both model versions, loaded by a stock MLflow client, on the same later flights."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from everloop.demo.flights import Flights
from everloop.demo.tensors import Columns

__all__ = ["Comparison", "Metrics", "MonthMetrics", "compare", "load_stock", "metrics_of"]

Score = Callable[[int, int], npt.NDArray[np.float64]]
"""Probability that each of the flights from one position to another is late."""
ROWS_AT_ONCE = 20_000


@dataclass(frozen=True)
class Metrics:
    """How good predictions are.

    Attributes:
        rows: Flights with a known outcome.
        roc_auc: Area under the ROC curve; None where all outcomes are the same.
        log_loss: Mean negative log likelihood.
        brier: Mean squared error of the probability.
    """

    rows: int
    roc_auc: float | None
    log_loss: float | None
    brier: float | None


@dataclass(frozen=True)
class MonthMetrics:
    """Both versions on the flights of one month.

    Attributes:
        month: 1 to 12.
        unseen: True if neither version has learned from any of them.
        stale: Metrics of the older version.
        retrained: Metrics of the newer version; None while it did not exist: it has learned from some of them.
    """

    month: int
    unseen: bool
    stale: Metrics
    retrained: Metrics | None


@dataclass(frozen=True)
class Comparison:
    """Two versions on the same flights, which neither has learned from.

    Attributes:
        stale_version: The version that drift found.
        retrained_version: The version that replaced it.
        from_position: First of these flights.
        stale: Metrics of the older version on them.
        retrained: Metrics of the newer version on them.
        months: The same month by month, from the first flight that was predicted.
    """

    stale_version: int
    retrained_version: int
    from_position: int
    stale: Metrics
    retrained: Metrics
    months: Sequence[MonthMetrics]

    def as_dict(self) -> dict[str, Any]:
        """Returns it for `summary.json`."""
        return asdict(self)


def load_stock(tracking_uri: str, model: str, version: int, columns: Columns) -> Score:
    """Loads a version with nothing but MLflow, as a data scientist would, and returns how it scores."""
    os.environ["MLFLOW_TRACKING_URI"] = tracking_uri
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow

    loaded = mlflow.pyfunc.load_model(f"models:/{model}/{version}")

    def score(start: int, stop: int) -> npt.NDArray[np.float64]:
        answer = loaded.predict(columns.feeds(start, stop))
        return np.asarray(answer["probabilities"], dtype=np.float64)[:, -1]

    return score


def metrics_of(late: npt.NDArray[np.float64], scores: npt.NDArray[np.float64]) -> Metrics:
    """Measures scores against outcomes; flights whose outcome is not known (NaN) do not count."""
    from sklearn.metrics import log_loss, roc_auc_score

    known = ~np.isnan(late) & ~np.isnan(scores)
    outcome, score = late[known], scores[known]
    if not len(outcome):
        return Metrics(0, None, None, None)
    both = len(np.unique(outcome)) == 2
    return Metrics(
        rows=len(outcome),
        roc_auc=float(roc_auc_score(outcome, score)) if both else None,
        log_loss=float(log_loss(outcome, score, labels=[0.0, 1.0])),
        brier=float(np.mean((score - outcome) ** 2)),
    )


def compare(
    flights: Flights,
    first: int,
    retrained_until: int,
    versions: tuple[int, int],
    scores: tuple[Score, Score],
) -> Comparison:
    """Scores both versions.

    Args:
        flights: All of them.
        first: First flight that was predicted.
        retrained_until: First flight that is newer than everything the newer version has learned from.
        versions: Numbers of the older and the newer version.
        scores: How they score.
    """
    late = flights.late
    stale, retrained = (_all_scores(score, first, len(flights)) for score in scores)
    months = []
    for month in sorted(set(flights.month[first:].tolist())):
        rows = np.flatnonzero(flights.month == month)
        rows = rows[rows >= first]
        unseen = bool(rows[0] >= retrained_until)
        months.append(
            MonthMetrics(
                month,
                unseen,
                metrics_of(late[rows], stale[rows]),
                metrics_of(late[rows], retrained[rows]) if unseen else None,
            )
        )
    return Comparison(
        *versions,
        from_position=retrained_until,
        stale=metrics_of(late[retrained_until:], stale[retrained_until:]),
        retrained=metrics_of(late[retrained_until:], retrained[retrained_until:]),
        months=months,
    )


def _all_scores(score: Score, start: int, stop: int) -> npt.NDArray[np.float64]:
    scores = np.full(stop, np.nan)
    for position in range(start, stop, ROWS_AT_ONCE):
        end = min(position + ROWS_AT_ONCE, stop)
        scores[position:end] = score(position, end)
    return scores
