"""The real detectors alert exactly where the data shift, and not before."""

from __future__ import annotations

import io
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest

from everloop_contracts.pipeline import Pipeline
from everloop_monitor.adapters.nannyml import NannymlDetectors
from everloop_monitor.detect import judge, judge_performance, judge_realised
from everloop_monitor.domain import Condition, Measurement, Reading, Readings, Rows
from everloop_monitor.fakes import FakeReferences
from everloop_monitor.ports import Detector
from everloop_runtime.errors import EverloopError

pytestmark = pytest.mark.slow  # importing NannyML takes 5 to 9 seconds

ROWS = 2000
TIME = datetime(2013, 1, 1, tzinfo=UTC)


def parquet(frame: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.to_parquet(buffer)
    return buffer.getvalue()


def declare(task: str, fields: dict[str, str], monitoring: dict[str, object]) -> Pipeline:
    target = {"binary": "bool", "regression": "float", "multiclass": "string"}[task]
    kinds = {"string": "category", "bool": "category", "float": "number", "int": "number"}
    return Pipeline.model_validate(
        {
            "pipeline": "p",
            "schema": {
                "id": "id",
                "time": "at",
                "fields": {
                    "id": {"type": "string"},
                    "at": {"type": "timestamp"},
                    **{n: {"type": t, "nullable": True} for n, t in fields.items()},
                    "y": {"type": target, "nullable": True},
                },
            },
            "target": {"field": "y", "task": task},
            "features": {n: {"kind": kinds[t], "of": n} for n, t in fields.items()},
            "training": {"families": ["logistic_regression"]},
            "monitoring": {"chunk_rows": ROWS, **monitoring},
        }
    )


BINARY = {
    "drift": {"threshold": 0.2, "share": 0.5},
    "performance": {"metric": "roc_auc", "max_loss": 0.05},
}
FIELDS = {"a": "float", "b": "float", "city": "string", "paid": "bool"}


def sample(
    rng: np.random.Generator, rows: int, *, shift: float = 0.0, noise: float = 0.0
) -> pd.DataFrame:
    """Two features that decide the label; `shift` moves a and the cities, `noise` takes the label's reason away."""
    a, b = rng.normal(shift, 1, rows), rng.normal(0, 1, rows)
    # A score of the model's own, calibrated on unshifted data.
    score = 1 / (1 + np.exp(-(a + b) * (1 - noise)))
    reason = 1 / (1 + np.exp(-(a + b)))
    frame = pd.DataFrame(
        {
            "a": np.where(rng.random(rows) < 0.05, np.nan, a),
            "b": b,
            "city": rng.choice(
                ["X", "Y", "Z"], rows, p=[0.5, 0.3, 0.2] if shift == 0 else [0.1, 0.1, 0.8]
            ),
            "paid": rng.random(rows) < 0.5,
            "at": pd.Timestamp(TIME),
            "everloop_score": reason,
        }
    )
    frame["everloop_label"] = np.where(frame.everloop_score >= 0.5, "true", "false")
    frame["y"] = rng.random(rows) < (0.5 if noise == 1 else score)
    return frame


def rows_of(frame: pd.DataFrame) -> Rows:
    return Rows(
        numbers={n: frame[n].to_numpy(float) for n in ("a", "b")},
        texts={
            "city": frame.city.to_numpy(object),
            "paid": np.where(frame.paid, "true", "false").astype(object),
        },
        scores=frame.everloop_score.to_numpy(float),
        labels=frame.everloop_label.to_numpy(object),
        record_ids=[str(n) for n in range(len(frame))],
        first_event=TIME,
        last_event=TIME,
    )


def distances(readings: Readings) -> dict[str, float]:
    return {r.feature: r.value for r in readings.of("drift")}


def one(readings: Readings, condition: Condition) -> Reading | None:
    found = readings.of(condition)
    assert len(found) < 2
    return found[0] if found else None


def value(readings: Readings, condition: Condition) -> float | None:
    found = one(readings, condition)
    return found.value if found else None


def estimated(readings: Readings) -> float | None:
    return value(readings, "estimated_performance")


def error(readings: Readings) -> float | None:
    return value(readings, "multivariate_drift")


def realised(detector: Detector, frame: pd.DataFrame, labels: Sequence[str | None]) -> float | None:
    return value(detector.realised(rows_of(frame), labels), "realised_performance")


def reference(detector: Detector) -> float | None:
    found = one(
        detector.read(rows_of(sample(np.random.default_rng(1), 200))), "estimated_performance"
    )
    return found.reference if found else None


def alerts(measured: Measurement | None) -> bool:
    assert measured is not None
    return measured.alert


def texts(labels: pd.Series) -> list[str | None]:
    return ["true" if label else "false" for label in labels]


@pytest.fixture(scope="module")
def rng():
    return np.random.default_rng(7)


def test_alerts_come_exactly_where_the_shift_starts(rng):
    pipeline = declare("binary", FIELDS, BINARY)
    detectors = NannymlDetectors(FakeReferences({"run": parquet(sample(rng, 10_000))}), keep=2)
    detector = detectors.fitted(pipeline, 1, "run")
    assert detectors.fitted(pipeline, 1, "run") is detector
    drift, multivariate, guessed, known = [], [], [], []
    # Four quiet chunks; four with a shift of the inputs; four quiet inputs whose labels have lost their reason.
    for number in range(12):
        frame = sample(rng, ROWS, shift=2.5 * (4 <= number < 8), noise=float(number >= 8))
        report = judge(pipeline.monitoring, detector.read(rows_of(frame)))
        labelled = detector.realised(rows_of(frame), texts(frame.y))
        drift.append(report.drift_alert)
        multivariate.append(alerts(report.multivariate))
        guessed.append(alerts(report.estimated))
        known.append(alerts(judge_realised(pipeline.monitoring, labelled, report).realised))
        if 4 <= number < 8:
            assert [f.feature for f in report.features if f.measurement.alert] == ["a", "city"]
    assert drift == [False] * 4 + [True] * 4 + [False] * 4
    assert multivariate == [False] * 4 + [True] * 4 + [False] * 4
    assert guessed[:4] + guessed[8:] == [False] * 8  # without labels a lost reason cannot be seen
    assert known[:4] + known[8:] == [False] * 4 + [True] * 4


def test_the_reference_and_a_chunk_like_it_agree(rng):
    pipeline = declare("binary", FIELDS, BINARY)
    frame = sample(rng, 10_000)
    detector = NannymlDetectors(FakeReferences({"run": parquet(frame)}), keep=2).fitted(
        pipeline, 1, "run"
    )
    readings = detector.read(rows_of(frame))
    assert all(distance < 1e-6 for distance in distances(readings).values())
    assert realised(detector, frame, texts(frame.y)) == pytest.approx(reference(detector))
    assert estimated(readings) == pytest.approx(reference(detector), abs=0.01)


def test_realised_performance_uses_the_labelled_rows_only(rng):
    pipeline = declare("binary", FIELDS, BINARY)
    detector = NannymlDetectors(
        FakeReferences({"run": parquet(sample(rng, 5_000))}), keep=2
    ).fitted(pipeline, 1, "run")
    frame = sample(rng, ROWS)
    half = frame.iloc[: ROWS // 2]
    expected = realised(detector, half, texts(half.y))
    labels = [*texts(half.y), *[None] * (ROWS // 2)]
    assert realised(detector, frame, labels) == pytest.approx(expected)
    assert realised(detector, frame, [None] * ROWS) is None
    assert realised(detector, frame, ["true"] * ROWS) is None  # one class has no ROC curve


def test_a_feature_that_lost_all_its_values_is_as_far_as_can_be(rng):
    pipeline = declare("binary", FIELDS, BINARY)
    detector = NannymlDetectors(
        FakeReferences({"run": parquet(sample(rng, 5_000))}), keep=2
    ).fitted(pipeline, 1, "run")
    frame = sample(rng, ROWS)
    frame["a"], frame["city"] = np.nan, ""
    found = distances(detector.read(rows_of(frame)))
    assert found["a"] == 1.0
    assert found["city"] == pytest.approx(1.0)
    assert found["b"] < 0.2


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_what_the_log_keeps_out_is_no_drift(rng, task):
    fields, monitoring = FIELDS, BINARY
    if task == "regression":
        monitoring = {"performance": {"metric": "rmse", "max_loss": 0.5}}
    pipeline = declare(task, fields, monitoring)
    log = pipeline.serving.log.model_copy(update={"redact": ("a", "city")})
    serving = pipeline.serving.model_copy(update={"log": log})
    pipeline = pipeline.model_copy(update={"serving": serving})
    learned, frame = sample(rng, 5_000), sample(rng, ROWS)
    learned["y"] = learned["y"].astype(float if task == "regression" else bool)
    detector = NannymlDetectors(FakeReferences({"run": parquet(learned)}), keep=2).fitted(
        pipeline, 1, "run"
    )
    frame["a"], frame["city"] = np.nan, ""
    readings = detector.read(rows_of(frame))
    assert set(distances(readings)) == {"b", "paid"}
    assert max(distances(readings).values()) < 0.2
    assert estimated(readings) is not None


def test_a_field_the_version_never_learned_is_left_out(rng):
    pipeline = declare("binary", FIELDS, BINARY)
    old = sample(rng, 5_000).drop(columns=["city"])
    old["b"] = np.nan
    detector = NannymlDetectors(FakeReferences({"run": parquet(old)}), keep=2).fitted(
        pipeline, 1, "run"
    )
    readings = detector.read(rows_of(sample(rng, ROWS)))
    assert set(distances(readings)) == {"a", "paid"}
    assert error(readings) is None  # one numeric feature has nothing to be reconstructed from


def test_regression_error_above_the_reference_alerts(rng):
    rule: dict[str, object] = {"performance": {"metric": "mae", "max_loss": 0.3}}
    pipeline = declare("regression", FIELDS, rule)

    def numbers(rows, spread):
        frame = sample(rng, rows)
        frame["everloop_score"] = frame.b
        frame["everloop_label"] = ""
        frame["y"] = frame.b + rng.normal(0, spread, rows)
        return frame

    detector = NannymlDetectors(
        FakeReferences({"run": parquet(numbers(5_000, 1.0))}), keep=2
    ).fitted(pipeline, 1, "run")
    known = reference(detector)
    assert known is not None
    assert known == pytest.approx(0.8, abs=0.05)
    performance = pipeline.monitoring.performance
    for spread, alert in ((1.0, False), (2.0, True)):
        frame = numbers(ROWS, spread)
        labelled = detector.realised(rows_of(frame), [str(y) for y in frame.y])
        judged = judge_performance(performance, labelled.of("realised_performance"))
        assert judged is not None
        assert (judged.alert, judged.lower) == (alert, None)
        assert judged.upper == pytest.approx(known + 0.3)
        assert estimated(detector.read(rows_of(frame))) == pytest.approx(
            reference(detector), abs=0.1
        )


def test_multiclass_is_watched_for_drift_only(rng):
    frame = sample(rng, 5_000)
    frame["y"] = np.where(frame.y, "yes", "no")
    pipeline = declare("multiclass", FIELDS, {"performance": {"metric": "accuracy"}})
    detector = NannymlDetectors(FakeReferences({"run": parquet(frame)}), keep=2).fitted(
        pipeline, 1, "run"
    )
    readings = detector.read(rows_of(frame))
    assert (reference(detector), estimated(readings)) == (None, None)
    assert len(distances(readings)) == 4
    assert realised(detector, frame, list(frame.y)) is None


def test_only_the_last_versions_stay_fitted(rng):
    references = FakeReferences({f"run-{n}": parquet(sample(rng, 2_000)) for n in (1, 2)})
    detectors = NannymlDetectors(references, keep=1)
    pipeline = declare("binary", FIELDS, BINARY)
    for version in (1, 2, 2, 1):
        detectors.fitted(pipeline, version, f"run-{version}")
    assert references.loaded == ["run-1", "run-2", "run-1"]


def test_a_run_without_a_sample_is_an_error():
    detectors = NannymlDetectors(FakeReferences({}), keep=1)
    with pytest.raises(EverloopError, match="no run"):
        detectors.fitted(declare("binary", FIELDS, BINARY), 1, "gone")


def test_nannymls_own_loans_drift_in_the_second_half():
    """The data set that NannyML ships: the applicants' cars and incomes change after half of the rows."""
    NannymlDetectors(FakeReferences({}), keep=1).prepare()
    import nannyml

    reference, analysis, targets = nannyml.load_synthetic_car_loan_dataset()
    names = {
        "car_value": "float",
        "debt_to_income_ratio": "float",
        "driver_tenure": "float",
        "salary_range": "string",
        "repaid_loan_on_prev_car": "bool",
        "size_of_downpayment": "string",
    }
    pipeline = declare(
        "binary",
        names,
        {
            "drift": {"threshold": 0.1, "share": 0.3},
            "performance": {"metric": "roc_auc", "max_loss": 0.005},
        },
    )

    def prepared(frame: pd.DataFrame) -> pd.DataFrame:
        frame = frame.rename(columns={"y_pred_proba": "everloop_score"})
        frame["everloop_label"] = np.where(frame.y_pred == 1, "true", "false")
        frame["at"] = pd.Timestamp(TIME)
        return frame

    known = prepared(reference)
    known["y"] = known.repaid == 1
    detector = NannymlDetectors(FakeReferences({"run": parquet(known)}), keep=1).fitted(
        pipeline, 1, "run"
    )
    later = prepared(analysis.merge(targets, left_index=True, right_index=True))
    drift, guessed, confirmed = [], [], []
    for start in range(0, 50_000, 5_000):
        part = later.iloc[start : start + 5_000]
        rows = Rows(
            numbers={n: part[n].to_numpy(float) for n, t in names.items() if t == "float"},
            texts={
                "salary_range": part.salary_range.to_numpy(object),
                "size_of_downpayment": part.size_of_downpayment.to_numpy(object),
                "repaid_loan_on_prev_car": np.where(
                    part.repaid_loan_on_prev_car.astype(bool), "true", "false"
                ).astype(object),
            },
            scores=part.everloop_score.to_numpy(float),
            labels=part.everloop_label.to_numpy(object),
            record_ids=[""] * len(part),
            first_event=TIME,
            last_event=TIME,
        )
        report = judge(pipeline.monitoring, detector.read(rows))
        labelled = detector.realised(rows, texts(part.repaid == 1))
        drift.append(report.drift_alert)
        guessed.append(alerts(report.estimated))
        confirmed.append(alerts(judge_realised(pipeline.monitoring, labelled, report).realised))
    assert drift == [False] * 5 + [True] * 5
    assert guessed == [False] * 5 + [True] * 5
    assert confirmed == [False] * 5 + [True] * 5


def fitted(pipeline: Pipeline, frame: pd.DataFrame) -> Detector:
    return NannymlDetectors(FakeReferences({"run": parquet(frame)}), keep=1).fitted(
        pipeline, 1, "run"
    )


def test_numbers_beyond_the_model_s_are_missing_in_the_sample(rng):
    pipeline = declare("binary", FIELDS, BINARY)
    frame = sample(rng, 10_000)
    frame.loc[:3, "a"] = [1e300, 1e39, -1e39, np.inf]
    detector = NannymlDetectors(FakeReferences({"run": parquet(frame)}), keep=1).fitted(
        pipeline, 1, "run"
    )
    readings = detector.read(rows_of(sample(rng, ROWS)))
    assert distances(readings)["a"] < 0.1
    assert not alerts(judge(pipeline.monitoring, readings).multivariate)
    assert reference(detector) is not None


def test_a_score_that_is_no_number_spoils_only_its_own_row(rng):
    detector = fitted(declare("binary", FIELDS, BINARY), sample(rng, 5_000))
    frame = sample(rng, ROWS)
    without = detector.read(rows_of(frame.iloc[1:]))
    whole = realised(detector, frame.iloc[1:], texts(frame.y.iloc[1:]))
    frame.loc[0, "everloop_score"] = np.nan
    assert estimated(detector.read(rows_of(frame))) == pytest.approx(estimated(without))
    assert realised(detector, frame, texts(frame.y)) == pytest.approx(whole)
    frame["everloop_score"] = np.inf
    assert estimated(detector.read(rows_of(frame))) is None
    assert realised(detector, frame, texts(frame.y)) is None


@pytest.mark.parametrize("labels", [True, None], ids=["one class", "none"])
def test_a_sample_whose_labels_teach_nothing_is_watched_for_drift_only(rng, labels):
    known = sample(rng, 5_000)
    known["y"] = pd.Series([labels] * 5_000, dtype=object)
    detector = fitted(declare("binary", FIELDS, BINARY), known)
    frame = sample(rng, ROWS)
    readings = detector.read(rows_of(frame))
    assert (reference(detector), estimated(readings)) == (None, None)
    assert realised(detector, frame, texts(frame.y)) is None
    assert set(distances(readings)) == set(FIELDS)


def test_accuracy_is_defined_in_a_single_class_and_f1_is_not(rng):
    frame = sample(rng, ROWS)
    found = {}
    for metric in ("accuracy", "f1"):
        rule = {**BINARY, "performance": {"metric": metric, "max_loss": 0.05}}
        detector = fitted(declare("binary", FIELDS, rule), sample(rng, 5_000))
        found[metric] = realised(detector, frame, ["true"] * ROWS)
    assert found == {"accuracy": pytest.approx((frame.everloop_label == "true").mean()), "f1": None}


def test_a_category_that_the_sample_never_saw_is_distance(rng):
    detector = fitted(declare("binary", FIELDS, BINARY), sample(rng, 5_000))
    frame = sample(rng, ROWS)
    frame["city"] = np.where(np.arange(ROWS) < ROWS // 2, frame.city, "unseen")
    found = distances(detector.read(rows_of(frame)))
    assert found["city"] > 0.5
    assert found["paid"] < 0.1


def test_a_model_that_takes_only_times_has_no_drift_to_be_read(rng):
    frame = sample(rng, 5_000).drop(columns=list(FIELDS))
    detector = fitted(declare("binary", FIELDS, BINARY), frame)
    readings = detector.read(rows_of(sample(rng, ROWS)))
    assert (distances(readings), error(readings)) == ({}, None)
    assert estimated(readings) == pytest.approx(reference(detector), abs=0.05)


def test_regression_takes_unseen_categories_empty_columns_and_odd_labels(rng):
    pipeline = declare("regression", FIELDS, {"performance": {"metric": "rmse", "max_loss": 0.3}})

    def numbers(rows):
        frame = sample(rng, rows)
        frame["everloop_score"], frame["everloop_label"] = frame.b, ""
        frame["y"] = frame.b + rng.normal(0, 1, rows)
        return frame

    detector = fitted(pipeline, numbers(5_000))
    frame = numbers(ROWS)
    whole = realised(detector, frame.iloc[3:], [str(y) for y in frame.y.iloc[3:]])
    labels = ["no number", "nan", "inf", *(str(y) for y in frame.y.iloc[3:])]
    assert realised(detector, frame, labels) == pytest.approx(whole)
    frame["a"], frame["city"] = np.nan, "unseen"
    readings = detector.read(rows_of(frame))
    assert distances(readings)["a"] == 1.0
    assert estimated(readings) == pytest.approx(reference(detector), abs=0.3)
