"""Fields that serving fills otherwise than training did: no drift of the world, but a fault on the way."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from everloop_contracts.pipeline import Pipeline
from everloop_monitor.detectors.detector import Detector, Read
from everloop_monitor.detectors.sample import NULL, UNSEEN, Sample
from everloop_monitor.domain import Reading

__all__ = ["DETECTOR"]

_NEARLY_ALL, _FEW = 0.99, 0.5


def _fit(pipeline: Pipeline, sample: Sample) -> Read | None:
    empty = _missing(sample)

    def read(chunk: Sample) -> Iterable[Reading]:
        """A reading for each field that is skewed: the share of its rows that are, in `value`."""
        for name, share in _missing(chunk).items():
            if share == 1.0 and empty[name] < _FEW:
                # Not sent, sent under another name, or of another type than it was taught with.
                yield Reading("schema_skew", "absent_in_serving", share, feature=name)
            elif empty[name] == 1.0 and share < _FEW:
                yield Reading("schema_skew", "absent_in_training", 1 - share, feature=name)
        for name, codes in chunk.texts.items():
            present = codes[codes != NULL]
            unknown = float((present == UNSEEN).mean()) if len(present) else 0.0
            if unknown >= _NEARLY_ALL and empty[name] < 1.0:
                # Written otherwise: another case, another code list, numbers as texts.
                yield Reading("schema_skew", "written_otherwise", unknown, feature=name)

    return read


def _missing(rows: Sample) -> dict[str, float]:
    """Share of missing values, by field."""
    shares = {name: float(np.isnan(column).mean()) for name, column in rows.numbers.items()}
    return shares | {name: float((codes == NULL).mean()) for name, codes in rows.texts.items()}


DETECTOR = Detector(_fit, ("schema_skew",), learned=False)
