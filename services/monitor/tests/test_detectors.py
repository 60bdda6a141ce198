"""One suite for whatever reads chunks: the fake, and NannyML."""

from __future__ import annotations

import io
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest

from everloop_monitor.adapters.nannyml import NannymlDetectors
from everloop_monitor.domain import Rows
from everloop_monitor.fakes import FakeDetectors, FakeReferences
from everloop_runtime.errors import EverloopError, Kind

NOW = datetime(2013, 5, 1, tzinfo=UTC)
ROWS = 400


@pytest.fixture(params=["fake", pytest.param("nannyml", marks=pytest.mark.slow)])
def detectors(request):
    """Detectors of which version 1 has a sample and version 2 has none."""
    if request.param == "fake":
        fake = FakeDetectors()
        fake.failing.add(2)
        return fake
    rng = np.random.default_rng(3)
    score = rng.random(2000)
    sample = pd.DataFrame(
        {
            "x": rng.random(2000),
            "city": rng.choice(["A", "B"], 2000),
            "paid": rng.random(2000) < 0.5,
            "everloop_score": score,
            "everloop_label": np.where(score >= 0.5, "true", "false"),
            "late": rng.random(2000) < score,
        }
    )
    file = io.BytesIO()
    sample.to_parquet(file)
    return NannymlDetectors(FakeReferences({"run-1": file.getvalue()}), keep=2)


@pytest.fixture
def chunk():
    rng = np.random.default_rng(5)
    score = rng.random(ROWS)
    return Rows(
        numbers={"x": rng.random(ROWS)},
        texts={
            "city": rng.choice(["A", "B"], ROWS).astype(object),
            "paid": rng.choice(["true", "false"], ROWS).astype(object),
        },
        scores=score,
        labels=np.where(score >= 0.5, "true", "false").astype(object),
        record_ids=[f"r{n}" for n in range(ROWS)],
        first_event=NOW,
        last_event=NOW,
    )


@pytest.fixture
def actuals(chunk):
    chance = np.random.default_rng(9).random(ROWS)
    return [
        "true" if one < score else "false" for one, score in zip(chance, chunk.scores, strict=True)
    ]


def test_a_chunk_is_read(detectors, pipeline, chunk):
    readings = detectors.fitted(pipeline, 1, "run-1").read(chunk)
    distances = readings.of("drift")
    assert {one.feature for one in distances} <= set(pipeline.inputs)
    assert all(0 <= one.value <= 1 for one in distances)
    (estimated,) = readings.of("estimated_performance")
    assert 0 <= estimated.reference <= 1
    assert 0 <= estimated.value <= 1
    assert "multivariate_drift" in readings.watched


def test_only_labelled_rows_are_realised(detectors, pipeline, chunk, actuals):
    detector = detectors.fitted(pipeline, 1, "run-1")

    def realised(labels):
        return [one.value for one in detector.realised(chunk, labels).of("realised_performance")]

    assert realised([None] * ROWS) == []
    half = [*actuals[: ROWS // 2], *[None] * (ROWS // 2)]
    other = ["false" if one == "true" else "true" for one in actuals[ROWS // 2 :]]
    (value,) = realised(half)
    assert 0 <= value <= 1
    assert realised([*half[: ROWS // 2], *other]) != [value]


def test_a_version_without_a_sample_is_an_error(detectors, pipeline):
    with pytest.raises(EverloopError) as caught:
        detectors.fitted(pipeline, 2, "run-2")
    assert caught.value.kind in (Kind.NOT_FOUND, Kind.UNAVAILABLE)
    assert detectors.fitted(pipeline, 1, "run-1") is not None
