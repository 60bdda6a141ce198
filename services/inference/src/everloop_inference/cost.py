"""What running a model takes, learned from every run."""

from __future__ import annotations

from typing import Final

__all__ = ["Cost"]

_GAIN: Final = 0.1
"""Weight of the newest run."""
_SURPRISE: Final = 3.0
"""How many times the expected time counts at most: a thread that was put aside says nothing about the model."""
_WORTH: Final = 20.0
"""How many times its fixed part a batch may take by its rows: with more, sharing the fixed part saves under 5 %."""


class Cost:
    """A fixed part for every run and a part for every row, both in seconds.

    Each run corrects both parts by what they explained of the expected time (an exponentially weighted mean whose
    error is shared out), so that runs of one size only leave the other part as it is known from warming up.

    >>> cost = Cost(fixed=50e-6, row=2e-6)
    >>> round(cost.seconds(100) * 1e6)
    250
    >>> cost.rows_within(200e-6), cost.rows_within(1.0)
    (100, 500)
    """

    __slots__ = ("fixed", "row")

    def __init__(self, fixed: float, row: float) -> None:
        """Takes what is known from warming up."""
        self.fixed = max(fixed, 1e-7)
        self.row = max(row, 1e-9)

    def seconds(self, rows: int) -> float:
        """Time that a run of so many rows is expected to take."""
        return self.fixed + rows * self.row

    def rows_within(self, seconds: float) -> int:
        """Rows that a batch shall have to add at most so much time to a run; fewer where more would save nothing."""
        return max(1, round(min(seconds, _WORTH * self.fixed) / self.row))

    def is_within(self, rows: int, seconds: float) -> bool:
        """Whether neither the run itself nor its rows are expected to take longer."""
        return max(self.fixed, rows * self.row) <= seconds

    def learn(self, rows: int, seconds: float) -> None:
        """Takes what a run took."""
        expected = self.seconds(rows)
        change = 1.0 + _GAIN * (min(seconds / expected, _SURPRISE) - 1.0)
        share = self.fixed / expected
        self.fixed *= 1.0 + (change - 1.0) * share
        self.row *= 1.0 + (change - 1.0) * (1.0 - share)
