"""What a model loses when it cannot see an input any more (permutation importance, Breiman 2001)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from everloop_contracts.pipeline import LOWER_IS_BETTER
from everloop_features import Feeds

__all__ = ["importance"]

ROWS: Final = 4_000
REPEATS: Final = 3


def importance(
    feeds: Feeds,
    metric: str,
    measured: Callable[[Feeds, npt.NDArray[np.intp]], dict[str, float]],
    seed: int,
) -> dict[str, float]:
    """Mean loss of the metric by raw input, the largest first; about 0 for one that does not matter.

    Raw inputs and not features: what a feature is made of cannot be told from its others.

    Args:
        feeds: the holdout's raw inputs; at most `ROWS` rows of them are looked at.
        metric: what is lost.
        measured: the metrics of the model for inputs, and the positions of their rows in the holdout.
        seed: makes the outcome repeatable.
    """
    random = np.random.default_rng(seed)
    count = len(next(iter(feeds.values())))
    rows = np.sort(random.permutation(count)[:ROWS])
    seen = {name: feed[rows] for name, feed in feeds.items()}
    whole = measured(seen, rows)
    sign = 1 if metric in LOWER_IS_BETTER else -1
    found: dict[str, float] = {}
    for name, feed in seen.items():
        losses: list[float] = []
        for _ in range(REPEATS):
            mixed: dict[str, Any] = {**seen, name: feed[random.permutation(len(rows))]}
            losses.append(
                sign * (measured(mixed, rows).get(metric, np.nan) - whole.get(metric, np.nan))
            )
        found[name] = float(np.mean(losses))
    return dict(sorted(found.items(), key=lambda item: -item[1]))
