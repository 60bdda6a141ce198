"""What the fields of a record must be to each other and to the time it came, on whole columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from everloop_contracts.pipeline import Pipeline
from everloop_contracts.rules import Comparison, Condition, FieldName, Value, parse
from everloop_contracts.schema import Freshness, Rule
from everloop_ingest.columns import show
from everloop_ingest.domain import Reason

__all__ = ["Finding", "RowRules"]

Finding: TypeAlias = tuple[int, Reason, str, str]
"""Row, reason, field and message."""

_COMPARE: dict[str, Callable[[Any, Any], pa.BooleanArray]] = {
    "==": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}
_SHOWN = 4
"""Fields whose values a message tells."""


class RowRules:
    """The rules and the freshness of one pipeline's schema."""

    def __init__(self, pipeline: Pipeline) -> None:
        """Takes the pipeline."""
        schema = pipeline.schema_
        self._time = schema.time
        self._rules = [
            (
                rule,
                parse(rule.when, schema.fields) if rule.when else (),
                parse(rule.check, schema.fields),
            )
            for rule in schema.rules
        ]
        self._freshness = schema.freshness

    def __bool__(self) -> bool:
        """Whether there is anything to check."""
        return bool(self._rules or self._freshness)

    def __call__(
        self, rows: pa.RecordBatch, timestamps: pa.Int64Array, actuals: pa.BooleanArray
    ) -> Iterator[Finding]:
        """What is broken, by rule; late labels break none, since they are no whole records.

        Args:
            rows: the columns of the schema; a value that broke its own field is null.
            timestamps: of the messages, milliseconds since 1970-01-01 UTC.
            actuals: which rows are late labels.
        """
        whole = pc.invert(actuals)
        for rule, when, check in self._rules:
            broken = pc.and_(pc.invert(_holds(check, rows, True)), whole)
            if when:
                broken = pc.and_(broken, _holds(when, rows, False))
            yield from self._broken_rule(rule, when, check, rows, broken)
        if self._freshness:
            times = rows.column(self._time)
            yield from self._untimely(self._freshness, times, timestamps, whole)

    def _broken_rule(
        self,
        rule: Rule,
        when: Condition,
        check: Condition,
        rows: pa.RecordBatch,
        broken: pa.BooleanArray,
    ) -> Iterator[Finding]:
        # In the order of the text: the field that a person sees first is the one that is named.
        names = list(dict.fromkeys(name for part in (*check, *when) for name in part.fields))
        wanted = f"{rule.check}, where {rule.when}" if rule.when else rule.check
        for row in pc.indices_nonzero(broken).to_pylist():
            values = ", ".join(
                f"{name} is {show(rows.column(name)[row].as_py())}" for name in names[:_SHOWN]
            )
            yield row, Reason.RULE_BROKEN, names[0], f"{rule.name}: wanted is {wanted}; {values}"

    def _untimely(
        self,
        wanted: Freshness,
        times: pa.TimestampArray,
        timestamps: pa.Int64Array,
        whole: pa.BooleanArray,
    ) -> Iterator[Finding]:
        age = pc.subtract(pc.multiply(timestamps, 1000), times.cast(pa.int64()))
        limits = (
            (wanted.max_age, age, Reason.TOO_OLD, "older"),
            (wanted.max_ahead, pc.negate(age), Reason.IN_FUTURE, "newer"),
        )
        for limit, distance, reason, word in limits:
            if limit is None:
                continue
            most = limit.days * 86_400_000_000 + limit.seconds * 1_000_000 + limit.microseconds
            broken = pc.and_(pc.fill_null(pc.greater(distance, most), False), whole)
            for row in pc.indices_nonzero(broken).to_pylist():
                seconds = distance[row].as_py() / 1e6
                time = show(times[row].as_py())
                text = (
                    f"{time} is {seconds:g} s {word} than its message, at most {limit} is accepted"
                )
                yield row, reason, self._time, text


def _holds(condition: Condition, rows: pa.RecordBatch, unknown: bool) -> pa.BooleanArray:
    """Where a condition holds; a comparison with a null counts as `unknown` says."""
    found: pa.BooleanArray | None = None
    for part in condition:
        one = pc.fill_null(_compare(part, rows), unknown)
        found = one if found is None else pc.and_(found, one)
    assert found is not None
    return found


def _compare(part: Comparison, rows: pa.RecordBatch) -> pa.BooleanArray:
    left = _side(part.left, rows)
    if part.right is None:
        return pc.is_null(left) if part.operator == "is null" else pc.is_valid(left)
    return _COMPARE[part.operator](left, _side(part.right, rows))


def _side(side: FieldName | Value, rows: pa.RecordBatch) -> Any:
    if isinstance(side, FieldName):
        return rows.column(side.name)
    if isinstance(side, datetime):
        return pa.scalar(side, pa.timestamp("us", "UTC"))
    return pa.scalar(side)
