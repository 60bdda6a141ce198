"""Declared features, fitted on training rows: what is learned is plain data, and applying it is pure.

Every feature becomes either a number or a code. Two encodings serve the model families:

* `ordinal`: numbers as they are (NaN where missing) and codes as numbers. For trees.
* `dense`: numbers with the training median where missing, standardised and clipped to ±`CLIP`, and codes one-hot.
  For linear models and neural networks.

All arithmetic is float32, in the order in which `graph.py` does it, so that both give the same values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from everloop_contracts.features import (
    AggregateFeature,
    HashFeature,
    ImputeFeature,
    MissingFeature,
    OneHotFeature,
    OrdinalFeature,
    ScaleFeature,
)
from everloop_contracts.pipeline import (
    BinsFeature,
    CategoryFeature,
    CrossFeature,
    DatePartFeature,
    Feature,
    FieldType,
    NumberFeature,
    Pipeline,
    RatioFeature,
    TargetMeanFeature,
    Task,
)
from everloop_features.inputs import NULL_TIME, Feeds, InputSpec, inputs_of

__all__ = ["CLIP", "ONE_HOT_LIMIT", "Encoding", "FittedFeatures", "fit"]

Encoding = Literal["ordinal", "dense"]
Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int64]

VOCABULARY_LIMIT: Final = 50_000
"""Most frequent values of a text field that are told apart."""
ONE_HOT_LIMIT: Final = 64
"""Columns of one category in the dense encoding; the rarest values share the last."""
LIMIT: Final = 1e30
"""Numbers beyond it, either way, count as missing: float32 arithmetic on them would overflow."""
CLIP: Final = 10.0
"""Standard deviations beyond which a standardised number is cut off."""
WORDS: Final = frozenset({"category", "cross", "target_mean", "one_hot", "aggregate"})
"""Kinds that go by the position of a text in its field's vocabulary."""
PARTS: Final[dict[str, int]] = {"hour": 24, "weekday": 7}
DAY: Final = 86_400
MONDAY: Final = 3 * DAY
"""Seconds from the Monday of its week to 1970-01-01, a Thursday."""
CELLS: Final = 250_000
"""Numbers in the table of an aggregate: values too rare for it have no window of their own."""
MOST_DAYS: Final = 4_000
"""Days in it, the newest; older rows see the first of them."""
SOUND: Final = 2**40
"""Seconds from 1970 beyond which a timestamp is on no day."""
NOTHING: Final = 2e30
"""What stands for no value in a table: a number that counts as missing, and that JSON can hold."""


class _Fitted(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Number(_Fitted):
    """A numeric field."""

    kind: Literal["number"] = "number"
    name: str
    of: str


class Ratio(_Fitted):
    """One numeric field by another; missing where it is not defined."""

    kind: Literal["ratio"] = "ratio"
    name: str
    of: str
    by: str


class Bins(_Fitted):
    """Number of edges that a numeric field reaches; missing where the field is."""

    kind: Literal["bins"] = "bins"
    name: str
    of: str
    edges: tuple[float, ...]


class TargetMean(_Fitted):
    """Shrunk mean of the target per word of the field's vocabulary, the last row for unseen words."""

    kind: Literal["target_mean"] = "target_mean"
    name: str
    of: str
    table: tuple[tuple[float, ...], ...]
    """`[vocabulary + 1, outputs]`: one output, or one per class of a multiclass target."""


class Category(_Fitted):
    """Position in the field's vocabulary, which is ordered by frequency; `size - 1` for the rest."""

    kind: Literal["category"] = "category"
    name: str
    of: str
    size: int


class Flag(_Fitted):
    """A boolean field: 0 false, 1 true, 2 missing."""

    kind: Literal["flag"] = "flag"
    name: str
    of: str
    size: int = 3


class DatePart(_Fitted):
    """Hour or weekday; `size - 1` for null where the field is nullable."""

    kind: Literal["date_part"] = "date_part"
    name: str
    of: str
    part: Literal["hour", "weekday"]
    size: int


class Cross(_Fitted):
    """Two text fields together; `size - 1` for pairs without a code of their own."""

    kind: Literal["cross"] = "cross"
    name: str
    of: tuple[str, str]
    stride: int
    """The key of a pair is `position of the first * stride + position of the second`."""
    keys: tuple[int, ...]
    """Keys by frequency; a key's position is its code."""
    size: int


class OneHot(_Fitted):
    """A column for each of the `size` most frequent words of the field."""

    kind: Literal["one_hot"] = "one_hot"
    name: str
    of: str
    size: int


class Ordinal(_Fitted):
    """Position in `order`; missing for any other text."""

    kind: Literal["ordinal"] = "ordinal"
    name: str
    of: str
    order: tuple[str, ...]


class Scale(_Fitted):
    """`(x - centre) * factor`, cut off at ±`bounds`; with `log`, of the signed logarithm of one plus the absolute."""

    kind: Literal["scale"] = "scale"
    name: str
    of: str
    log: bool
    centre: float
    factor: float
    bounds: tuple[float, float]


class Impute(_Fitted):
    """A numeric field with `value` where it is missing or beyond `LIMIT`."""

    kind: Literal["impute"] = "impute"
    name: str
    of: str
    value: float


class Missing(_Fitted):
    """1 where the field is null."""

    kind: Literal["missing"] = "missing"
    name: str
    of: str
    type: FieldType


class Hash(_Fitted):
    """Counts of words by `MurmurHash3 mod buckets` (x86, 32 bits, seed 0, of UTF-8)."""

    kind: Literal["hash"] = "hash"
    name: str
    of: str
    buckets: int


class Aggregate(_Fitted):
    """A number by word of the field's vocabulary and by day; the last row is that of every other word."""

    kind: Literal["aggregate"] = "aggregate"
    name: str
    by: str
    time: str
    first: int
    """Day of the first column, days since 1970. Earlier days see that column, later ones than the last see the last."""
    table: tuple[tuple[float, ...], ...]
    """`[words + 1, days]`; `NOTHING` where there is no value."""


AnyNumeric = (
    Number
    | Ratio
    | Bins
    | TargetMean
    | OneHot
    | Ordinal
    | Scale
    | Impute
    | Missing
    | Hash
    | Aggregate
)
Numeric = Annotated[AnyNumeric, Field(discriminator="kind")]
Coded = Annotated[Category | Flag | DatePart | Cross, Field(discriminator="kind")]


class FittedFeatures(_Fitted):
    """What the training rows taught; round-trips through `model_dump_json` and `model_validate_json`.

    The columns of a matrix are the numeric features in order, then the coded ones in order.
    """

    fields: tuple[tuple[str, FieldType, bool, str], ...]
    """Raw inputs: name, type, nullable, timezone."""
    vocabularies: dict[str, tuple[str, ...]]
    """Words of each text field, most frequent first."""
    numeric: tuple[Numeric, ...]
    coded: tuple[Coded, ...]
    medians: tuple[float, ...] = ()
    """Median of each numeric column, in place of missing values."""
    means: tuple[float, ...] = ()
    scales: tuple[float, ...] = ()
    """Reciprocal of each numeric column's standard deviation; 0 for a constant column."""

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """The raw inputs."""
        return tuple(InputSpec(*field) for field in self.fields)

    @property
    def widths(self) -> tuple[int, ...]:
        """Columns of each coded feature in the dense encoding."""
        return tuple(min(feature.size, ONE_HOT_LIMIT) for feature in self.coded)

    def names(self, encoding: Encoding) -> tuple[str, ...]:
        """Name of every column of an encoding, unique and in order."""
        return tuple(self._names(encoding))

    def _names(self, encoding: Encoding) -> Iterator[str]:
        for feature in self.numeric:
            match feature:
                case TargetMean() if len(feature.table[0]) > 1:
                    yield from (f"{feature.name}[{i}]" for i in range(len(feature.table[0])))
                case OneHot():
                    words = self.vocabularies[feature.of][: feature.size]
                    yield from (f"{feature.name}={word}" for word in words)
                case Hash():
                    yield from (f"{feature.name}#{i}" for i in range(feature.buckets))
                case _:
                    yield feature.name
        for coded, width in zip(self.coded, self.widths, strict=True):
            if encoding == "ordinal":
                yield coded.name
            else:
                yield from (f"{coded.name}={code}" for code in range(width))

    def transform(self, feeds: Feeds, encoding: Encoding) -> Floats:
        """Applies the features: `[rows, len(names(encoding))]`."""
        words = self._words(feeds)
        numbers = self._numbers(feeds, words)
        codes = self._codes(feeds, words)
        if encoding == "ordinal":
            return np.concatenate([numbers, codes.astype(np.float32)], axis=1)
        filled = np.where(np.isnan(numbers), _row(self.medians), numbers)
        with np.errstate(over="ignore"):  # a tiny deviation; the clip follows
            scaled = (filled - _row(self.means)) * _row(self.scales)
        one_hot = [
            (np.minimum(codes[:, [index]], width - 1) == np.arange(width)).astype(np.float32)
            for index, width in enumerate(self.widths)
        ]
        return np.concatenate([np.clip(scaled, -CLIP, CLIP).astype(np.float32), *one_hot], axis=1)

    def _words(self, feeds: Feeds) -> dict[str, Codes]:
        """Position of every text in its field's vocabulary; the vocabulary's size for unseen ones."""
        words = {}
        for field, vocabulary in self.vocabularies.items():
            positions = {word: index for index, word in enumerate(vocabulary)}
            get, unseen = positions.get, len(vocabulary)
            found = [get(text, unseen) for text in feeds[field].ravel()]
            words[field] = np.array(found, dtype=np.int64)
        return words

    def _numbers(self, feeds: Feeds, words: dict[str, Codes]) -> Floats:
        """Numeric columns `[rows, n]`, NaN where missing or beyond `LIMIT`."""
        rows = len(next(iter(feeds.values())))
        columns = [np.empty((rows, 0), dtype=np.float32)]
        for feature in self.numeric:
            columns.append(_numeric_columns(feature, feeds, words))
        numbers = np.concatenate(columns, axis=1)
        return np.where(np.abs(numbers) > np.float32(LIMIT), np.float32("nan"), numbers)

    def _codes(self, feeds: Feeds, words: dict[str, Codes]) -> Codes:
        rows = len(next(iter(feeds.values())))
        columns = [np.empty((rows, 0), dtype=np.int64)]
        columns += [_codes(feature, feeds, words).reshape(-1, 1) for feature in self.coded]
        return np.concatenate(columns, axis=1)


def _row(values: tuple[float, ...]) -> Floats:
    return np.array(values, dtype=np.float32).reshape(1, -1)


def _numeric_columns(
    feature: AnyNumeric, feeds: Feeds, words: dict[str, Codes]
) -> npt.NDArray[Any]:
    match feature:
        case Number():
            return feeds[feature.of]
        case Ratio():
            with np.errstate(all="ignore"):
                return np.divide(feeds[feature.of], feeds[feature.by], dtype=np.float32)
        case Bins():
            values: Floats = feeds[feature.of]
            reached: Floats = (values >= _row(feature.edges)).sum(
                axis=1, keepdims=True, dtype=np.float32
            )
            with np.errstate(invalid="ignore"):
                # 0 for a number, NaN for what is none: a missing value reaches no edge, which is not zero edges.
                return reached + (values - values)
        case TargetMean():
            table: Floats = np.array(feature.table, dtype=np.float32)
            means: Floats = table[words[feature.of]]
            return means
        case OneHot():
            own = np.arange(feature.size)
            return np.equal(words[feature.of].reshape(-1, 1), own).astype(np.float32)
        case Ordinal():
            places = {word: float(place) for place, word in enumerate(feature.order)}
            ranks = [places.get(text, np.nan) for text in feeds[feature.of].ravel()]
            return np.array(ranks, dtype=np.float32).reshape(-1, 1)
        case Scale():
            return _scaled(feature, feeds[feature.of])
        case Impute():
            given: Floats = feeds[feature.of]
            gone = np.isnan(given) | (np.abs(given) > np.float32(LIMIT))
            return np.where(gone, np.float32(feature.value), given)
        case Missing():
            return _missing(feeds[feature.of], feature.type).astype(np.float32)
        case Hash():
            return _hashed(feeds[feature.of].ravel(), feature.buckets)
        case Aggregate():
            windows: Floats = np.array(feature.table, dtype=np.float32)
            low, high = day_bounds(feature)
            days = (np.clip(feeds[feature.time].ravel(), low, high) - low) // DAY
            keys = np.minimum(words[feature.by], len(windows) - 1)
            return np.asarray(windows[keys, days]).reshape(-1, 1)


def day_bounds(feature: Aggregate) -> tuple[int, int]:
    """Seconds at which the first and the last day of an aggregate's table begin."""
    return feature.first * DAY, (feature.first + len(feature.table[0]) - 1) * DAY


def _scaled(feature: Scale, values: Floats) -> Floats:
    with np.errstate(all="ignore"):  # what is no number stays none, what is too large is cut off
        if feature.log:
            values = np.sign(values) * np.log(np.abs(values) + np.float32(1))
        moved = (values - np.float32(feature.centre)) * np.float32(feature.factor)
    low, high = (np.float32(bound) for bound in feature.bounds)
    return np.asarray(np.clip(moved, low, high), dtype=np.float32)


def _missing(values: npt.NDArray[Any], kind: FieldType) -> npt.NDArray[np.bool_]:
    if kind is FieldType.STRING:
        return np.asarray(values == "", dtype=bool)
    if kind is FieldType.TIMESTAMP:
        return np.asarray(values == NULL_TIME)
    return np.asarray(np.isnan(values))


def _hashed(texts: npt.NDArray[Any], buckets: int) -> Floats:
    # scikit-learn's, which whoever trains has; what serves runs the graph, which hashes by itself.
    from sklearn.utils import murmurhash3_32

    known: dict[str, int] = {}
    counts = np.zeros((len(texts), buckets), dtype=np.float32)
    for row, text in enumerate(texts):
        for word in text.split(" "):
            if word:
                if word not in known:
                    known[word] = murmurhash3_32(word.encode(), seed=0, positive=True) % buckets
                counts[row, known[word]] += 1
    return counts


def _codes(
    feature: Category | Flag | DatePart | Cross, feeds: Feeds, words: dict[str, Codes]
) -> Codes:
    match feature:
        case Category():
            return np.minimum(words[feature.of], feature.size - 1)
        case Flag():
            values = feeds[feature.of].ravel()
            return np.where(np.isnan(values), 2, values != 0).astype(np.int64)
        case DatePart():
            seconds = feeds[feature.of].ravel()
            if feature.part == "hour":
                parts = seconds % DAY // 3600
            else:
                parts = (seconds % (7 * DAY) + MONDAY) % (7 * DAY) // DAY
            return np.where(seconds == NULL_TIME, feature.size - 1, parts)
        case Cross():
            first, second = feature.of
            order = np.argsort(feature.keys)
            keys = np.array(feature.keys, dtype=np.int64)[order]
            pairs = words[first] * feature.stride + words[second]
            if not len(keys):
                return np.zeros_like(pairs)
            place = np.minimum(np.searchsorted(keys, pairs), len(keys) - 1)
            return np.where(keys[place] == pairs, order[place], feature.size - 1)


def fit(pipeline: Pipeline, feeds: Feeds, target: npt.NDArray[Any]) -> FittedFeatures:
    """Learns vocabularies, statistics and target means.

    Args:
        pipeline: declares the features.
        feeds: raw inputs of the training rows, and of no others, at least one.
        target: `[rows]`: 0 or 1 (binary), class position from 0 (multiclass) or the number (regression).
    """
    inputs = inputs_of(pipeline)
    vocabularies = _vocabularies(pipeline, feeds)
    fitted = FittedFeatures(
        fields=tuple((spec.name, spec.type, spec.nullable, spec.timezone) for spec in inputs),
        vocabularies=vocabularies,
        numeric=(),
        coded=(),
    )
    words = fitted._words(feeds)
    outcomes = _outcomes(pipeline.target.task, target)
    numeric: list[AnyNumeric] = []
    coded: list[Category | Flag | DatePart | Cross] = []
    for name, feature in pipeline.features.items():
        match feature:
            case NumberFeature():
                numeric.append(Number(name=name, of=feature.of))
            case RatioFeature():
                numeric.append(Ratio(name=name, of=feature.of, by=feature.by))
            case BinsFeature():
                numeric.append(Bins(name=name, of=feature.of, edges=feature.edges))
            case TargetMeanFeature():
                numeric.append(_target_mean(name, feature, vocabularies, words, outcomes))
            case OneHotFeature():
                size = min(len(vocabularies[feature.of]), feature.max_categories)
                numeric.append(OneHot(name=name, of=feature.of, size=size))
            case OrdinalFeature():
                numeric.append(Ordinal(name=name, of=feature.of, order=feature.order))
            case ScaleFeature():
                numeric.append(_scale(name, feature, feeds[feature.of]))
            case ImputeFeature():
                numeric.append(_impute(name, feature, feeds[feature.of]))
            case MissingFeature():
                kind = pipeline.schema_.fields[feature.of].type
                numeric.append(Missing(name=name, of=feature.of, type=kind))
            case AggregateFeature():
                numeric.append(_aggregate(name, feature, vocabularies, words, feeds))
            case HashFeature():
                numeric.append(Hash(name=name, of=feature.of, buckets=feature.buckets))
            case _:
                coded.append(_coded(name, feature, pipeline, vocabularies, words))
    fitted = fitted.model_copy(update={"numeric": tuple(numeric), "coded": tuple(coded)})
    medians, means, scales = _statistics(fitted._numbers(feeds, words))
    return fitted.model_copy(update={"medians": medians, "means": means, "scales": scales})


def _known(values: Floats) -> npt.NDArray[np.float64]:
    """The numbers that count, as float64."""
    flat = values.ravel()
    return flat[np.abs(flat) <= np.float32(LIMIT)].astype(np.float64)


def _scale(name: str, feature: ScaleFeature, values: Floats) -> Scale:
    known = _known(values) if len(_known(values)) else np.zeros(1)
    centre, spread, bounds = 0.0, 1.0, (-LIMIT, LIMIT)
    if feature.method == "standard":
        centre, spread = float(known.mean()), float(known.std())
    elif feature.method == "min_max":
        centre, spread, bounds = float(known.min()), float(np.ptp(known)), (0.0, 1.0)
    elif feature.method == "robust":
        low, centre, high = (float(value) for value in np.quantile(known, [0.25, 0.5, 0.75]))
        spread, bounds = high - low, (-5.0, 5.0)
    return Scale(
        name=name,
        of=feature.of,
        log=feature.method == "log",
        centre=float(np.float32(centre)),
        factor=_reciprocal(spread),
        bounds=bounds,
    )


def _impute(name: str, feature: ImputeFeature, values: Floats) -> Impute:
    known, value = _known(values), feature.value
    if feature.strategy != "constant":
        average = np.mean if feature.strategy == "mean" else np.median
        value = float(average(known)) if len(known) else 0.0
    return Impute(name=name, of=feature.of, value=float(np.float32(value)))


def _aggregate(
    name: str,
    feature: AggregateFeature,
    vocabularies: dict[str, tuple[str, ...]],
    words: dict[str, Codes],
    feeds: Feeds,
) -> Aggregate:
    seconds = feeds[feature.time].ravel()
    values = np.zeros(len(seconds)) if feature.of is None else feeds[feature.of].ravel()
    taken = (seconds > -SOUND) & (seconds < SOUND) & (np.abs(values) <= np.float32(LIMIT))
    days, values = seconds[taken] // DAY, values[taken].astype(np.float64)
    # One row of the far future is not to end the table there: what comes after its end sees the end.
    last = int(np.quantile(days, 0.999, method="higher")) if len(days) else -1
    first = max(int(days.min()), last + 1 - MOST_DAYS) if len(days) else 0
    span = feature.window.days
    width = last + 2 - first  # the day after the last one is the first that is not known
    size = min(len(vocabularies[feature.by]), max(1, CELLS // width))
    # Column j of the table is the window that ends before day `first + j`.
    begin, columns = first - span, width - 1 + span
    keys = words[feature.by][taken]
    inside = (keys < size) & (days >= begin) & (days <= last)
    cells = keys[inside] * columns + days[inside] - begin

    def windows(weights: npt.NDArray[np.float64] | None) -> npt.NDArray[np.float64]:
        daily = np.bincount(cells, weights, size * columns).reshape(size, columns)
        until = np.concatenate([np.zeros((size, 1)), daily.cumsum(axis=1)], axis=1)
        return np.asarray(until[:, span:] - until[:, :width])

    counts = windows(None)
    table, nothing = counts, 0.0
    if feature.function != "count":
        table = windows(values[inside])
    if feature.function == "mean":
        nothing = NOTHING
        table = np.where(counts > 0, table / np.maximum(counts, 1), nothing)
    rows = np.vstack([table, np.full((1, width), nothing)]).astype(np.float32)
    return Aggregate(
        name=name,
        by=feature.by,
        time=feature.time,
        first=first,
        table=tuple(tuple(row) for row in rows.tolist()),
    )


def _coded(
    name: str,
    feature: Feature,
    pipeline: Pipeline,
    vocabularies: dict[str, tuple[str, ...]],
    words: dict[str, Codes],
) -> Category | Flag | DatePart | Cross:
    match feature:
        case CategoryFeature():
            if pipeline.schema_.fields[feature.of].type is FieldType.BOOL:
                return Flag(name=name, of=feature.of)
            size = min(len(vocabularies[feature.of]), feature.max_categories) + 1
            return Category(name=name, of=feature.of, size=size)
        case DatePartFeature():
            size = PARTS[feature.part] + pipeline.schema_.fields[feature.of].nullable
            return DatePart(name=name, of=feature.of, part=feature.part, size=size)
        case CrossFeature():
            first, second = feature.of
            stride = len(vocabularies[second]) + 1
            seen, counts = np.unique(words[first] * stride + words[second], return_counts=True)
            best = np.argsort(-counts, kind="stable")[: feature.max_categories]
            keys = tuple(int(key) for key in seen[best])
            return Cross(name=name, of=feature.of, stride=stride, keys=keys, size=len(keys) + 1)
        case _:
            raise TypeError(f"features.{name}: there is no code for the kind '{feature.kind}'")


def _vocabularies(pipeline: Pipeline, feeds: Feeds) -> dict[str, tuple[str, ...]]:
    vocabularies = {}
    told_apart = {
        source
        for feature in pipeline.features.values()
        if feature.kind in WORDS
        for source in feature.sources
    }
    for field, spec in pipeline.inputs.items():
        if spec.type is FieldType.STRING and field in told_apart:
            counts = Counter(feeds[field].ravel().tolist())
            ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
            vocabularies[field] = tuple(word for word, _ in ranked[:VOCABULARY_LIMIT])
    return vocabularies


def _outcomes(task: Task, target: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """What a target mean averages: `[rows, 1]`, or one column per class."""
    if task is Task.MULTICLASS:
        classes = target.astype(np.int64)
        return np.eye(int(classes.max()) + 1)[classes]
    return target.astype(np.float64).reshape(-1, 1)


def _target_mean(
    name: str,
    feature: TargetMeanFeature,
    vocabularies: dict[str, tuple[str, ...]],
    words: dict[str, Codes],
    outcomes: npt.NDArray[np.float64],
) -> TargetMean:
    """Shrinks towards the overall mean as if `smoothing` more rows had it (Micci-Barreca 2001, simple form)."""
    positions, size = words[feature.of], len(vocabularies[feature.of]) + 1
    counts = np.bincount(positions, minlength=size).astype(np.float64)
    sums = [np.bincount(positions, outcomes[:, c], size) for c in range(outcomes.shape[1])]
    overall = outcomes.mean(axis=0)
    weights = (counts + feature.smoothing).reshape(-1, 1)
    shrunk = (np.stack(sums, axis=1) + feature.smoothing * overall) / weights
    shrunk[-1] = overall
    return TargetMean(name=name, of=feature.of, table=tuple(tuple(row) for row in shrunk.tolist()))


def _statistics(
    numbers: Floats,
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    """Median, mean and reciprocal deviation of each column, as float32 values."""
    medians, means, scales = [], [], []
    for column in numbers.T:
        known = column[~np.isnan(column)].astype(np.float64)
        median = np.float32(np.median(known)) if len(known) else np.float32(0)
        filled = np.where(np.isnan(column), median, column).astype(np.float64)
        deviation = float(filled.std())
        medians.append(float(median))
        means.append(float(np.float32(filled.mean())))
        scales.append(_reciprocal(deviation))
    return tuple(medians), tuple(means), tuple(scales)


def _reciprocal(deviation: float) -> float:
    with np.errstate(all="ignore"):
        scale = np.float32(1.0) / np.float32(deviation)
    # Constant columns, and deviations that float32 cannot divide by, carry nothing: they become 0.
    return float(scale) if np.isfinite(scale) and deviation > 1e-12 else 0.0
