"""A pipeline that declares every kind of feature."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from everloop_contracts.pipeline import Pipeline


def _make(task: str = "binary") -> Pipeline:
    target = {"binary": "bool", "multiclass": "string", "regression": "float"}[task]
    return Pipeline.model_validate(
        {
            "pipeline": "every-kind",
            "schema": {
                "id": "id",
                "time": "at",
                "fields": {
                    "id": {"type": "string"},
                    "at": {"type": "timestamp", "timezone": "America/New_York"},
                    "seen": {"type": "timestamp", "nullable": True, "timezone": "Asia/Kolkata"},
                    "city": {"type": "string"},
                    "shop": {"type": "string", "nullable": True},
                    "price": {"type": "float", "nullable": True},
                    "count": {"type": "int", "nullable": True},
                    "member": {"type": "bool", "nullable": True},
                    "note": {"type": "string", "nullable": True},
                    "unused": {"type": "float"},
                    "outcome": {"type": target, "nullable": True},
                },
            },
            "target": {"field": "outcome", "task": task},
            "features": {
                "hour": {"kind": "date_part", "of": "at", "part": "hour"},
                "seen_weekday": {"kind": "date_part", "of": "seen", "part": "weekday"},
                "city": {"kind": "category", "of": "city", "max_categories": 3},
                "shop": {"kind": "category", "of": "shop"},
                "member": {"kind": "category", "of": "member"},
                "pair": {"kind": "cross", "of": ["city", "shop"], "max_categories": 4},
                "city_rate": {"kind": "target_mean", "of": "city", "smoothing": 2},
                "price": {"kind": "number", "of": "price"},
                "is_member": {"kind": "number", "of": "member"},
                "price_each": {"kind": "ratio", "of": "price", "by": "count"},
                "city_is": {"kind": "one_hot", "of": "city", "max_categories": 2},
                "shop_rank": {"kind": "ordinal", "of": "shop", "order": ["b", "a", ""]},
                "price_standard": {"kind": "scale", "of": "price"},
                "price_range": {"kind": "scale", "of": "price", "method": "min_max"},
                "price_robust": {"kind": "scale", "of": "price", "method": "robust"},
                "price_log": {"kind": "scale", "of": "price", "method": "log"},
                "price_or_mean": {"kind": "impute", "of": "price", "strategy": "mean"},
                "price_or_median": {"kind": "impute", "of": "price"},
                "count_or_9": {"kind": "impute", "of": "count", "strategy": "constant", "value": 9},
                "no_price": {"kind": "missing", "of": "price"},
                "no_shop": {"kind": "missing", "of": "shop"},
                "never_seen": {"kind": "missing", "of": "seen"},
                "no_member": {"kind": "missing", "of": "member"},
                "note": {"kind": "hash", "of": "note", "buckets": 5},
                "city_days": {
                    "kind": "aggregate",
                    "function": "count",
                    "by": "city",
                    "time": "at",
                    "window": "2d",
                },
                "shop_sum": {
                    "kind": "aggregate",
                    "function": "sum",
                    "of": "price",
                    "by": "shop",
                    "time": "seen",
                    "window": "1d",
                },
                "city_mean": {
                    "kind": "aggregate",
                    "function": "mean",
                    "of": "price",
                    "by": "city",
                    "time": "at",
                    "window": "3d",
                },
                "price_band": {"kind": "bins", "of": "price", "edges": [-1, 0, 10.5]},
            },
            "training": {"families": ["logistic_regression"]},
        }
    )


@pytest.fixture(scope="session")
def make_pipeline() -> Callable[[str], Pipeline]:
    """Makes a pipeline with every kind of feature, for one task."""
    return _make


@pytest.fixture(scope="session")
def pipeline() -> Pipeline:
    """A binary pipeline with every kind of feature."""
    return _make("binary")
