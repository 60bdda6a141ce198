"""Distribution checks: what of a version's new records keeps it from being announced."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

import orjson

from everloop_contracts.pipeline import Checks

__all__ = ["MAX_VALUES", "Profile", "violations"]

MAX_VALUES = 1_000
"""Different values of a field beyond which it is no category, and unseen ones are not looked for."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Counts over records as they came.

    Attributes:
        records: how many.
        nulls: by field.
        values: by field and value; None for a field with too many.
    """

    records: int
    nulls: Mapping[str, int]
    values: Mapping[str, Mapping[str, int] | None]

    def plus(self, other: Profile) -> Profile:
        """Both together; a field that one of them does not know was null there.

        >>> one = Profile(2, {"a": 1}, {"c": {"x": 2}})
        >>> one.plus(Profile(1, {"a": 0, "b": 1}, {"c": {"y": 1}}))
        Profile(records=3, nulls={'a': 1, 'b': 3}, values={'c': {'x': 2, 'y': 1}})
        """
        values: dict[str, Mapping[str, int] | None] = dict(self.values)
        for name, counts in other.values.items():
            known = values.get(name, {})
            if known is None or counts is None:
                values[name] = None
                continue
            both = _sum(known, counts)
            values[name] = both if len(both) <= MAX_VALUES else None
        nulls = {
            name: self.nulls.get(name, self.records) + other.nulls.get(name, other.records)
            for name in [*self.nulls, *other.nulls]
        }
        return Profile(self.records + other.records, nulls, values)

    def encode(self) -> str:
        """As the database keeps it."""
        return orjson.dumps(asdict(self)).decode()

    @classmethod
    def decode(cls, text: str) -> Profile:
        """From what `encode` gave; of nothing where it is empty."""
        return cls(**orjson.loads(text)) if text else cls(0, {}, {})


def violations(checks: Checks, rows: int, before: Profile, new: Profile) -> list[str]:
    """Why a version is not to be announced, for a person; nothing where all is well.

    Args:
        checks: of the pipeline.
        rows: that the version has.
        before: records up to the last version that was announced.
        new: records since then.
    """
    found = []
    if rows < checks.min_rows:
        found.append(f"{rows} rows, at least {checks.min_rows} are asked for")
    if min(before.records, new.records) >= checks.min_sample:
        found += [*_null_rises(checks, before, new), *_unseen(checks, before, new)]
    return found


def _null_rises(checks: Checks, before: Profile, new: Profile) -> Iterator[str]:
    if checks.max_null_rise is None:
        return
    for name in before.nulls.keys() & new.nulls.keys():
        was, now = before.nulls[name] / before.records, new.nulls[name] / new.records
        if now - was > checks.max_null_rise:
            yield f"{name}: {now:.0%} of the new records are null, {was:.0%} of those before"


def _unseen(checks: Checks, before: Profile, new: Profile) -> Iterator[str]:
    if checks.max_unseen is None:
        return
    for name, counts in new.values.items():
        known = before.values.get(name)
        if counts is None or known is None:
            continue
        unseen = [value for value in counts if value not in known]
        share = sum(counts[value] for value in unseen) / new.records
        if share > checks.max_unseen:
            named = ", ".join(map(repr, sorted(unseen)[:3]))
            yield f"{name}: {share:.0%} of the new records have values never seen before ({named})"


def _sum(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {name: one.get(name, 0) + other.get(name, 0) for name in [*one, *other]}
