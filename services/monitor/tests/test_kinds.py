"""Each kind of detector, taught with a sample: exactly where it alerts, and that it measures what NannyML does."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest

from everloop_contracts.pipeline import Pipeline
from everloop_monitor.adapters.nannyml import NannymlDetectors
from everloop_monitor.detect import judge, judge_realised
from everloop_monitor.detectors import Sample, known_detectors, load_detector
from everloop_monitor.detectors.sample import UNSEEN
from everloop_monitor.detectors.univariate import Distance
from everloop_monitor.domain import Rows
from everloop_monitor.fakes import FakeReferences

pytestmark = [
    pytest.mark.slow,  # importing NannyML takes 5 to 9 seconds
    pytest.mark.filterwarnings("ignore:The resulting number of chunks is too low"),
]
ROWS = 1_000
AT = pd.Timestamp("2013-01-01", tz="UTC").to_pydatetime()


def frame(rng, rows, *, shift=0.0, wrong=0.0, where="Y"):
    """A score calibrated on a; `shift` moves a and `wrong` turns labels around, both only in the cities named."""
    city = rng.choice(["X", "Y", "Z"], rows)
    there = np.isin(city, list(where))
    a = rng.normal(0, 1, rows) + shift * there
    score = 1 / (1 + np.exp(-2 * (a - shift * there)))
    truth = rng.random(rows) < score
    return pd.DataFrame(
        {
            "a": a,
            "b": a + rng.normal(0, 0.5, rows) * 1.0,
            "city": city,
            "everloop_score": score,
            "everloop_label": np.where(score >= 0.5, "true", "false"),
            "y": np.where(there & (rng.random(rows) < wrong), ~truth, truth),
        }
    )


def chunk(part, **changed):
    columns = {**{name: part[name].to_numpy() for name in part}, **changed}
    return Rows(
        numbers={n: np.asarray(columns[n], dtype=float) for n in ("a", "b")},
        texts={"city": np.asarray(columns["city"], dtype=object)},
        scores=np.asarray(columns["everloop_score"], dtype=float),
        labels=np.asarray(columns["everloop_label"], dtype=object),
        record_ids=[""] * len(part),
        first_event=AT,
        last_event=AT,
    )


def declare(**monitoring):
    kinds = {"a": "float", "b": "float", "city": "string"}
    return Pipeline.model_validate(
        {
            "pipeline": "p",
            "schema": {
                "id": "id",
                "time": "at",
                "fields": {
                    "id": {"type": "string"},
                    "at": {"type": "timestamp"},
                    **{n: {"type": t, "nullable": True} for n, t in kinds.items()},
                    "y": {"type": "bool", "nullable": True},
                },
            },
            "target": {"field": "y", "task": "binary"},
            "features": {
                n: {"kind": "category" if t == "string" else "number", "of": n}
                for n, t in kinds.items()
            },
            "training": {
                "families": ["logistic_regression"],
                "costs": {"false_positive": 1, "false_negative": 4},
            },
            "monitoring": {"chunk_rows": ROWS, **monitoring},
        }
    )


@pytest.fixture(scope="module")
def learned():
    return frame(np.random.default_rng(1), 8_000)


@pytest.fixture(scope="module")
def teach(learned):
    buffer = io.BytesIO()
    learned.to_parquet(buffer)

    def teach(**monitoring):
        pipeline = declare(**monitoring)
        references = FakeReferences({"run": buffer.getvalue()})
        detector = NannymlDetectors(references, keep=1).fitted(pipeline, 1, "run")

        def verdicts(part, **changed):
            rows = chunk(part, **changed)
            report = judge(pipeline.monitoring, detector.read(rows))
            actuals = ["true" if y else "false" for y in part.y]
            return judge_realised(pipeline.monitoring, detector.realised(rows, actuals), report)

        return verdicts

    return teach


@pytest.fixture(scope="module")
def all_kinds(teach):
    return teach(segments=["city"], drift={"share": 0.3})


def alerting(report):
    return {name for name, alert in report.verdicts.items() if alert} | (
        {"drift"} if report.drift_alert else set()
    )


def test_a_chunk_like_the_sample_is_quiet_and_everything_was_looked_at(all_kinds):
    for seed in range(10, 16):
        report = all_kinds(frame(np.random.default_rng(seed), ROWS))
        assert alerting(report) == set()
    assert set(report.verdicts) == {
        "multivariate_drift",
        "output_drift",
        "segment_drift",
        "segment_performance",
        "data_quality",
        "schema_skew",
    }


def test_a_shift_of_one_segment_is_told_by_its_name(all_kinds):
    report = all_kinds(frame(np.random.default_rng(2), ROWS, shift=0.8))
    drifted = [f for f in report.findings if f.condition == "segment_drift"]
    assert {f.segment for f in drifted if f.measurement.alert} == {"city=Y"}


def test_a_segment_that_is_predicted_badly_is_told_by_its_name(all_kinds):
    report = all_kinds(frame(np.random.default_rng(3), ROWS, wrong=0.5))
    bad = [f for f in report.findings if f.condition == "segment_performance"]
    assert {f.segment for f in bad if f.measurement.alert} == {"city=Y"}


def test_answers_that_move_are_output_drift(all_kinds):
    part = frame(np.random.default_rng(4), ROWS)
    report = all_kinds(part, everloop_score=np.minimum(part.everloop_score + 0.2, 1))
    assert "output_drift" in alerting(report)
    assert "drift" not in alerting(report)


def test_correlations_that_break_are_multivariate_drift(all_kinds):
    part = frame(np.random.default_rng(5), ROWS)
    shuffled = np.random.default_rng(6).permutation(part.b.to_numpy())
    assert alerting(all_kinds(part, b=shuffled)) == {"multivariate_drift"}


@pytest.mark.parametrize(
    ("changed", "measure"),
    [
        (lambda p: {"a": np.where(np.arange(len(p)) % 20 == 0, np.nan, p.a)}, "missing"),
        (lambda p: {"a": np.where(np.arange(len(p)) % 20 == 0, 99.0, p.a)}, "out_of_range"),
        (lambda p: {"city": np.where(np.arange(len(p)) % 20 == 0, "New", p.city)}, "unseen"),
    ],
    ids=["missing", "out of range", "unseen"],
)
def test_bad_values_are_named(all_kinds, changed, measure):
    part = frame(np.random.default_rng(7), ROWS)
    report = all_kinds(part, **changed(part))
    bad = [f for f in report.findings if f.condition == "data_quality"]
    assert [f.measurement.measure for f in bad] == [measure]


@pytest.mark.parametrize(
    ("changed", "measure"),
    [
        (lambda p: {"a": np.full(len(p), np.nan)}, "absent_in_serving"),
        (lambda p: {"city": p.city.str.lower()}, "written_otherwise"),
    ],
)
def test_serving_that_fills_a_field_otherwise_is_skew(all_kinds, changed, measure):
    part = frame(np.random.default_rng(8), ROWS)
    report = all_kinds(part, **changed(part))
    skewed = [f for f in report.findings if f.condition == "schema_skew"]
    assert [f.measurement.measure for f in skewed] == [measure]


def test_a_classifier_tells_what_no_single_feature_shows(teach):
    verdicts = teach(detectors=["domain_classifier"])
    part = frame(np.random.default_rng(9), ROWS)
    assert alerting(verdicts(part)) == set()
    assert alerting(verdicts(part, b=-part.b)) == {"multivariate_drift"}


def test_performance_may_be_what_answers_cost(teach):
    verdicts = teach(
        detectors=["estimated", "realised"], performance={"metric": "cost", "max_loss": 0.2}
    )
    part = frame(np.random.default_rng(10), 4 * ROWS)
    report = verdicts(part)
    said = part.everloop_label == "true"
    paid = ((said & ~part.y) * 1 + (~said & part.y) * 4).mean()
    assert report.realised.value == pytest.approx(paid)
    assert report.estimated.value == pytest.approx(paid, abs=0.1)
    assert not report.realised.alert
    worse = verdicts(frame(np.random.default_rng(11), 4 * ROWS, wrong=0.6))
    assert worse.realised.alert
    assert worse.realised.lower is None


METHODS = ["jensen_shannon", "hellinger", "kolmogorov_smirnov", "wasserstein"]


@pytest.mark.parametrize(
    ("number", "text"),
    list(zip(METHODS, ("jensen_shannon", "hellinger", "chi2", "l_infinity"), strict=True)),
)
def test_distances_are_nannymls(learned, number, text):
    import nannyml as nml

    part = frame(np.random.default_rng(12), ROWS, shift=0.3)
    calculator = nml.UnivariateDriftCalculator(
        column_names=["a", "city"],
        continuous_methods=[number],
        categorical_methods=[text],
        computation_params={m: {} for m in METHODS} | {"calculation_method": "estimated"},
        chunker=nml.CountBasedChunker(chunk_number=1),
    ).fit(learned[["a", "city"]].astype({"city": object}))
    found = calculator.calculate(part[["a", "city"]].astype({"city": object}))
    data = found.filter(period="analysis").data
    codes = {name: code for code, name in enumerate("XYZ", start=1)}
    here = {"a": part.a.to_numpy(), "city": part.city.map(codes).to_numpy()}
    there = {"a": learned.a.to_numpy(), "city": learned.city.map(codes).to_numpy()}
    for name, method in (("a", number), ("city", text)):
        distance = Distance(method, there[name], text=name == "city")
        tolerance = 0.02 if method in ("kolmogorov_smirnov", "wasserstein") else 1e-9
        expected = data[name, method, "value"].iloc[0]
        assert distance.to(here[name]) == pytest.approx(expected, rel=tolerance)


def test_what_the_sample_never_had_is_as_far_as_nannyml_says(learned):
    """Nulls are left out, numbers beyond its range and texts that it lacks are not."""
    import nannyml as nml

    part = frame(np.random.default_rng(14), ROWS, shift=0.3)
    part.loc[:50, "a"], part.loc[60:90, "a"] = np.nan, 1e6
    part.loc[:70, "city"] = "Mars"
    calculator = nml.UnivariateDriftCalculator(
        column_names=["a", "city"], chunker=nml.CountBasedChunker(chunk_number=1)
    ).fit(learned[["a", "city"]].astype({"city": object}))
    data = calculator.calculate(part[["a", "city"]].astype({"city": object}))
    data = data.filter(period="analysis").data
    codes = {name: code for code, name in enumerate("XYZ", start=1)}
    number = Distance("jensen_shannon", learned.a.to_numpy(), text=False)
    text = Distance("jensen_shannon", learned.city.map(codes).to_numpy(), text=True)
    city = part.city.map(codes).fillna(UNSEEN).to_numpy(np.int64)
    assert number.to(part.a.to_numpy()) == pytest.approx(
        data["a", "jensen_shannon", "value"].iloc[0], rel=1e-9
    )
    assert text.to(city) == pytest.approx(data["city", "jensen_shannon", "value"].iloc[0], rel=1e-9)


def test_reconstruction_is_nannymls(learned):
    import nannyml as nml

    def columns(part):
        return part[["a", "b"]].assign(c=part.a - 2 * part.b, d=part.everloop_score)

    def sample(part):
        numbers = {name: column.to_numpy() for name, column in columns(part).items()}
        none = np.zeros(len(part))
        return Sample(numbers, {}, none, none, none, {}, pd.Index([]))

    part = frame(np.random.default_rng(13), ROWS, shift=1.0)
    calculator = nml.DataReconstructionDriftCalculator(
        column_names=list("abcd"), chunk_number=10
    ).fit(columns(learned))
    calculator.chunker = nml.CountBasedChunker(chunk_number=1)
    result = calculator.calculate(columns(part))
    expected = result.filter(period="analysis").data["reconstruction_error", "value"].iloc[0]
    read = load_detector("reconstruction").fit(declare(), sample(learned))
    assert read is not None
    (reading,) = read(sample(part))
    assert reading.value == pytest.approx(expected, rel=1e-9)


def test_components_read_a_part_of_the_sample_as_if_they_had_never_seen_it():
    """Where nothing correlates, components fit the sample's own chance, and explain it better than what comes later."""
    rng = np.random.default_rng(8)
    names = [f"n{n}" for n in range(12)]

    def rows(many, number=None):
        columns = {name: rng.normal(size=many) for name in names}
        nothing = np.zeros(many)
        return Sample(columns, {}, nothing, nothing, nothing, {}, pd.Index([]), number)

    sample = rows(2_000, np.arange(2_000))
    read = load_detector("reconstruction").fit(declare(), sample)
    assert read is not None
    starts = range(0, 2_000, 100)
    parts = [one.value for s in starts for one in read(sample.take(slice(s, s + 100)))]
    later = [one.value for _ in starts for one in read(rows(100))]
    assert np.mean(parts) == pytest.approx(np.mean(later), rel=0.015)


@pytest.mark.parametrize("metric", ["roc_auc", "accuracy", "f1"])
def test_performance_is_nannymls(learned, teach, metric):
    import nannyml as nml

    def prepared(part):
        return part.assign(label=(part.everloop_label == "true") * 1.0, target=part.y * 1.0)

    options = {
        "metrics": [metric],
        "y_true": "target",
        "y_pred": "label",
        "y_pred_proba": "everloop_score",
        "problem_type": "classification_binary",
        "chunk_number": 1,
    }
    part = frame(np.random.default_rng(14), ROWS, wrong=0.2)
    columns = ["everloop_score", "label", "target"]
    here, there = prepared(part)[columns], prepared(learned)[columns]
    found = [
        nml.CBPE(**options).fit(there).estimate(here),
        nml.PerformanceCalculator(**options).fit(there).calculate(here),
    ]
    expected = [r.filter(period="analysis").data[metric, "value"].iloc[0] for r in found]
    report = teach(detectors=["estimated", "realised"], performance={"metric": metric})(part)
    assert [report.estimated.value, report.realised.value] == pytest.approx(expected)


def test_a_detector_is_found_by_its_file():
    assert known_detectors() == {
        "univariate",
        "outputs",
        "reconstruction",
        "domain_classifier",
        "quality",
        "skew",
        "estimated",
        "realised",
    }
    with pytest.raises(LookupError, match="no detector 'x'; there are: domain_classifier, "):
        load_detector("x")
