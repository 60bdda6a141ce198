"""Detectors of a model version, fitted once on its reference sample, most of them by NannyML."""

from __future__ import annotations

import os
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from everloop_contracts.pipeline import Pipeline
from everloop_monitor import normal
from everloop_monitor.adapters.river import Changes
from everloop_monitor.detectors import Detector, Read, Sample, chunk_of, load_detector, reference_of
from everloop_monitor.domain import Condition, Reading, Readings, Rows
from everloop_monitor.ports import Detector as FittedDetector
from everloop_monitor.ports import References

__all__ = ["NannymlDetectors"]

_FEWEST_ROWS = 20
"""Rows of a part of the reference sample below which it is read in fewer parts."""
_SEGMENTS, _SEGMENT_ROWS = 20, 500
"""Segments of a field that are watched, those of most rows, and the rows that each needs in the reference sample."""
_SEGMENT_CHUNK_ROWS = 50
"""Rows of a segment in a chunk below which nothing is read of it."""
_SEED = 7


class NannymlDetectors:
    """Fits detectors, and keeps the ones used last."""

    def __init__(self, references: References, keep: int) -> None:
        """Takes where reference samples are, and how many model versions stay fitted."""
        self._references = references
        self._keep = keep
        self._fitted: OrderedDict[tuple[str, int, str], _VersionDetector] = OrderedDict()

    def prepare(self) -> None:
        """Imports NannyML, which takes 5 to 9 seconds."""
        os.environ["NML_DISABLE_USAGE_LOGGING"] = (
            "1"  # it calls home unless told so before the import
        )
        import nannyml  # noqa: F401

        # It would rather have six chunks at a time; ours come one by one.
        warnings.filterwarnings("ignore", message="The resulting number of chunks is too low")

    def fitted(self, pipeline: Pipeline, version: int, run_id: str) -> FittedDetector:
        """See `Detectors.fitted`."""
        key = (pipeline.name, version, run_id)
        if key not in self._fitted:
            self.prepare()
            sample = reference_of(pipeline, self._references.load(run_id))
            self._fitted[key] = _VersionDetector(pipeline, sample)
            if len(self._fitted) > self._keep:
                self._fitted.popitem(last=False)
        self._fitted.move_to_end(key)
        return self._fitted[key]


class _VersionDetector:
    """The pipeline's detectors, taught with the sample of one version, and with each segment's part of it.

    What the sample cannot teach is left out: drift of columns it lacks, performance where it holds too few labels.
    """

    def __init__(self, pipeline: Pipeline, sample: Sample) -> None:
        self._pipeline, self._sample = pipeline, sample
        detectors = [load_detector(name) for name in pipeline.monitoring.detectors]
        self._whole = [
            _Fitted(pipeline, detector, sample, learn=detector.learned) for detector in detectors
        ]
        self._changes = Changes(sample, pipeline.monitoring.false_alarms)
        self._segments: dict[tuple[str, int], list[_Fitted]] = {}
        for field in pipeline.segments:
            codes, counts = np.unique(sample.texts.get(field, ()), return_counts=True)
            largest = sorted(zip(counts, codes, strict=True), reverse=True)[:_SEGMENTS]
            for code in [code for count, code in largest if count >= _SEGMENT_ROWS]:
                part = sample.take(sample.texts[field] == code)
                self._segments[field, int(code)] = [
                    _Fitted(pipeline, detector, part, learn=True)
                    for detector in detectors
                    if detector.by_segment
                ]

    def read(self, rows: Rows) -> Readings:
        """See `Detector.read`."""
        return self._read(chunk_of(self._pipeline, self._sample, rows), labelled=False)

    def changed(self, rows: Rows) -> dict[str, int]:
        """See `Detector.changed`."""
        return self._changes.found(chunk_of(self._pipeline, self._sample, rows))

    def realised(self, rows: Rows, actuals: Sequence[str | None]) -> Readings:
        """See `Detector.realised`."""
        return self._read(chunk_of(self._pipeline, self._sample, rows, actuals), labelled=True)

    def _read(self, chunk: Sample, *, labelled: bool) -> Readings:
        items: list[Reading] = []
        watched: set[Condition] = set()
        for fitted in self._whole:
            if fitted.detector.labelled is labelled and fitted.read is not None:
                items += fitted.readings(chunk)
                watched.update(fitted.detector.conditions)
        for (field, code), parts in self._segments.items():
            rows = chunk.texts[field] == code
            if np.count_nonzero(rows) < _SEGMENT_CHUNK_ROWS:
                continue
            segment = f"{field}={chunk.categories[field][code]}"
            part = chunk.take(rows)
            for fitted in parts:
                if fitted.detector.labelled is labelled and fitted.read is not None:
                    items += [replace(one, segment=segment) for one in fitted.readings(part)]
                    watched.update(
                        _OF_SEGMENTS[condition] for condition in fitted.detector.conditions
                    )
        return Readings(tuple(items), frozenset(watched))


_OF_SEGMENTS: Mapping[Condition, Condition] = {
    "drift": "segment_drift",
    "estimated_performance": "segment_performance",
    "realised_performance": "segment_performance",
}


class _Fitted:
    """A detector with what is normal for its readings."""

    def __init__(
        self, pipeline: Pipeline, detector: Detector, sample: Sample, *, learn: bool
    ) -> None:
        self.detector = detector
        self.read: Read | None = detector.fit(pipeline, sample)
        self._spreads: dict[tuple[str, ...], normal.Spread] = {}
        if self.read is not None and learn:
            self._spreads = _spreads(self.read, sample, detector, pipeline.monitoring.chunk_rows)

    def readings(self, chunk: Sample) -> Iterable[Reading]:
        """The readings of a chunk, each with what is normal for it."""
        assert self.read is not None, "only what was fitted is asked"
        for reading in self.read(chunk):
            spread = self._spreads.get(_key(reading))
            known = spread.at(len(chunk), reading.error) if spread else None
            yield replace(reading, normal=known)


def _key(reading: Reading) -> tuple[str, ...]:
    """What says that readings of different chunks are of the same."""
    return reading.condition, reading.measure, reading.feature


def _spreads(
    read: Read, sample: Sample, detector: Detector, chunk_rows: int
) -> dict[tuple[str, ...], normal.Spread]:
    """Reads the sample in parts: of neighbouring rows, and of shuffled ones."""
    parts = min(
        normal.CHUNKS if detector.cheap else normal.CHUNKS // 2, len(sample) // _FEWEST_ROWS
    )
    if parts < 3:
        return {}
    rows = min(len(sample) // parts, chunk_rows)
    order = np.arange(len(sample))
    together = _values(read, sample, order, parts, rows)
    shuffled: dict[tuple[str, ...], list[Reading]] = {}
    if detector.cheap:
        mixed = np.random.default_rng(_SEED).permutation(order)
        shuffled = _values(read, sample, mixed, parts, rows)
    return {
        key: normal.Spread(
            [one.value for one in found],
            [one.value for one in shuffled.get(key, ())],
            rows,
            len(sample),
            found[0].distance,
        )
        for key, found in together.items()
        if len(found) > 2
    }


def _values(
    read: Read, sample: Sample, order: np.ndarray, parts: int, rows: int
) -> dict[tuple[str, ...], list[Reading]]:
    """Readings of equal parts of the sample, spread evenly over its rows in an order."""
    found: dict[tuple[str, ...], list[Reading]] = {}
    for start in np.linspace(0, len(order) - rows, parts).astype(int):
        for reading in read(sample.take(order[start : start + rows])):
            found.setdefault(_key(reading), []).append(reading)
    return found
