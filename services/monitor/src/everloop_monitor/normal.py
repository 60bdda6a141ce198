"""What is normal for a reading: what chunks of the reference sample itself show.

A reading of a chunk varies for two reasons. Its rows are drawn by chance, which shrinks with their number; and the
world of some days differs from that of others, which does not. Chunks of shuffled rows of the sample show the first,
chunks of neighbouring rows both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from everloop_monitor.domain import Normal

__all__ = ["CHUNKS", "Spread", "upper_bound", "upper_tail"]

CHUNKS = 20
"""Parts that the reference sample is read in."""
_SMALLEST = 1e-9


class Spread:
    """How a reading varies between chunks of the reference sample."""

    def __init__(
        self,
        together: Sequence[float],
        shuffled: Sequence[float],
        rows: int,
        total: int,
        distance: bool,
    ) -> None:
        """Takes what chunks of neighbouring rows and of shuffled ones show.

        Args:
            together: one value per chunk of neighbouring rows; at least two.
            shuffled: one value per chunk of shuffled rows; without any, all variation counts as the world's.
            rows: rows of a chunk.
            total: rows of the whole sample.
            distance: True for distances to the sample, of which the chunks are parts: their distance to the rest of it
                is larger by total / (total - rows), exactly so where it is a difference of distributions.
        """
        scale = total / (total - rows) if distance and total > rows else 1.0
        self._rows, self._total, self._distance = rows, total, distance
        self._chunks = len(together)
        mean, variance = _moments(together, scale)
        chance_mean, chance_variance = (
            _moments(shuffled, scale) if len(shuffled) > 1 else (0.0, 0.0)
        )
        self._mean = mean
        self._chance = chance_mean, chance_variance
        # What chance does not explain is the world's.
        self._world = max(mean**2 - chance_mean**2, 0.0), max(variance - chance_variance, 0.0)

    def at(self, rows: int, error: float = 0.0) -> Normal:
        """What is normal for a chunk of so many rows; a standard error puts a floor under the deviation."""
        # Sampling variance of a difference between a chunk and the sample: 1 / rows + 1 / total.
        size = (1 / rows + 1 / self._total) / (1 / self._rows + 1 / self._total)
        chance_mean, chance_variance = self._chance
        world_mean, world_variance = self._world
        mean = math.sqrt(size * chance_mean**2 + world_mean) if self._distance else self._mean
        variance = size * chance_variance + world_variance
        # The mean is known from so many chunks only.
        variance *= 1 + 1 / self._chunks
        return Normal(mean, max(math.sqrt(variance), error, _SMALLEST), self._chunks - 1)


def _moments(values: Sequence[float], scale: float) -> tuple[float, float]:
    return float(np.mean(values)) * scale, float(np.var(values, ddof=1)) * scale**2


def upper_tail(value: float, normal: Normal) -> float:
    """Probability of a value at least as large, by Student's t.

    >>> round(upper_tail(0.2, Normal(0.1, 0.05, 19)), 4)
    0.03
    """
    from scipy.special import stdtr

    return float(stdtr(normal.freedom, (normal.mean - value) / normal.deviation))


def upper_bound(probability: float, normal: Normal) -> float:
    """The value that is exceeded with a probability.

    >>> round(upper_bound(0.03, Normal(0.1, 0.05, 19)), 3)
    0.2
    """
    from scipy.special import stdtrit

    return normal.mean - float(stdtrit(normal.freedom, probability)) * normal.deviation
