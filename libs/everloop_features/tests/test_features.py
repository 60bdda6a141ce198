"""The fitted features, their JSON form and their ONNX export say the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everloop_contracts.pipeline import Pipeline
from everloop_features import NULL_TIME, Encoding, Feeds, FittedFeatures, fit
from everloop_features.features import CLIP, Aggregate
from everloop_features.graph import feature_graph

ENCODINGS: tuple[Encoding, ...] = get_args(Encoding)
# NUL ends a string on its way into onnxruntime, and no JSON text column of ours may hold surrogates.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=4)
CITIES = st.sampled_from(["", "Graz", "Wien", "Linz", "Ödön", "東京"]) | TEXT
SHOPS = st.sampled_from(["", "a", "b", "ab"]) | TEXT
NUMBERS = st.floats(width=32) | st.sampled_from([0.0, -0.0, 10.5, 3e38, -3e38, np.nan, np.inf])
TIMES = st.integers(-(2**63), 2**63 - 1) | st.integers(0, 30 * 86_400)
NOTES = st.lists(st.sampled_from(["big", "Größe", "東京", "", "the", "\tthe"]), max_size=6).map(
    " ".join
)
FLAGS = st.sampled_from([0.0, 1.0, np.nan])
ROWS = st.tuples(TIMES, TIMES, CITIES, SHOPS, NUMBERS, NUMBERS, FLAGS, NOTES | TEXT)
NAMES = ("at", "seen", "city", "shop", "price", "count", "member", "note")
DTYPES = (np.int64, np.int64, object, object, np.float32, np.float32, np.float32, object)


def feeds_of(rows: list[tuple[Any, ...]]) -> Feeds:
    columns = zip(*rows, strict=True)
    return {
        name: np.array(column, dtype=dtype).reshape(-1, 1)
        for name, dtype, column in zip(NAMES, DTYPES, columns, strict=True)
    }


def target_of(pipeline: Pipeline, rows: int) -> npt.NDArray[Any]:
    return np.arange(rows) % (2 if pipeline.target.task == "binary" else 3)


def run(fitted: FittedFeatures, encoding: Encoding, feeds: Feeds) -> npt.NDArray[np.float32]:
    model = feature_graph(fitted, encoding).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    matrix: npt.NDArray[np.float32] = session.run(None, feeds)[0]
    return matrix


@settings(max_examples=60)
@given(
    task=st.sampled_from(["binary", "multiclass", "regression"]),
    taught=st.lists(ROWS, min_size=1, max_size=12),
    asked=st.lists(ROWS, min_size=1, max_size=12),
)
def test_the_export_gives_what_the_transform_gives(
    make_pipeline: Callable[[str], Pipeline],
    task: str,
    taught: list[tuple[Any, ...]],
    asked: list[tuple[Any, ...]],
) -> None:
    pipeline = make_pipeline(task)
    fitted = fit(pipeline, feeds_of(taught), target_of(pipeline, len(taught)))
    assert FittedFeatures.model_validate_json(fitted.model_dump_json()) == fitted
    feeds = feeds_of(asked)
    for encoding in ENCODINGS:
        matrix = fitted.transform(feeds, encoding)
        assert matrix.dtype == np.float32
        assert matrix.shape == (len(asked), len(fitted.names(encoding)))
        assert len(set(fitted.names(encoding))) == matrix.shape[1]
        np.testing.assert_allclose(run(fitted, encoding, feeds), matrix, rtol=1e-5, atol=1e-5)
        if encoding == "dense":
            assert np.isfinite(matrix).all()


TAUGHT: list[tuple[Any, ...]] = [
    (0, NULL_TIME, "Graz", "a", 1.0, 2.0, 1.0, ""),
    (3600, 0, "Graz", "b", 3.0, 0.0, 0.0, ""),
    (7200, 0, "Wien", "", np.nan, 1.0, np.nan, ""),
    (7200, 0, "Linz", "a", 11.0, 1.0, 1.0, ""),
    (7200, 0, "Enns", "a", 11.0, 1.0, 1.0, ""),
]


def column(fitted: FittedFeatures, rows: list[tuple[Any, ...]], name: str) -> list[float]:
    matrix = fitted.transform(feeds_of(rows), "ordinal")
    values: list[float] = matrix[:, fitted.names("ordinal").index(name)].tolist()
    return values


@pytest.fixture
def fitted(pipeline: Pipeline) -> FittedFeatures:
    return fit(pipeline, feeds_of(TAUGHT), np.array([1, 0, 1, 1, 0]))


def test_hour_and_weekday_are_the_wall_clock_s(fitted: FittedFeatures) -> None:
    friday = 86_400 + 13 * 3600 + 59
    rows = [(friday, friday, "", "", 0, 0, 0, ""), (-1, NULL_TIME, "", "", 0, 0, 0, "")]
    assert column(fitted, rows, "hour") == [13, 23]
    assert column(fitted, rows, "seen_weekday") == [4, 7]


def test_categories_rank_by_frequency_and_the_rest_share_a_code(fitted: FittedFeatures) -> None:
    assert column(fitted, TAUGHT, "city") == [0, 0, 3, 2, 1]
    assert column(fitted, [(0, 0, "Rom", "a", 0, 0, 0, "")], "city") == [3]


def test_missing_booleans_have_a_code(fitted: FittedFeatures) -> None:
    assert column(fitted, TAUGHT, "member") == [1, 0, 2, 1, 1]


def test_crosses_know_pairs_not_parts(fitted: FittedFeatures) -> None:
    codes = column(fitted, [*TAUGHT, (0, 0, "Wien", "b", 0, 0, 0, "")], "pair")
    assert len(set(codes[:4])) == 4
    assert codes[-1] == 4


def test_a_target_mean_is_shrunk_to_the_overall_mean(fitted: FittedFeatures) -> None:
    overall = 3 / 5
    means = column(fitted, [TAUGHT[0], (0, 0, "Rom", "", 0, 0, 0, "")], "city_rate")
    assert means == pytest.approx([(1 + 2 * overall) / (2 + 2), overall])


def test_bins_count_edges_and_keep_what_is_missing(fitted: FittedFeatures) -> None:
    prices = [-2, -1, 10.4, 10.5, np.nan]
    bands = column(fitted, [(0, 0, "", "", price, 1, 0, "") for price in prices], "price_band")
    np.testing.assert_array_equal(bands, [0, 1, 2, 3, np.nan])


def test_ratios_by_zero_are_missing(fitted: FittedFeatures) -> None:
    rows = [(0, 0, "", "", 3, by, 0, "") for by in (2, 0, np.nan)]
    np.testing.assert_array_equal(column(fitted, rows, "price_each"), [1.5, np.nan, np.nan])


def test_dense_numbers_are_imputed_standardised_and_clipped(fitted: FittedFeatures) -> None:
    names = fitted.names("dense")
    dense = fitted.transform(feeds_of(TAUGHT), "dense")
    prices = np.array([1.0, 3.0, 7.0, 11.0, 11.0])
    expected = (prices - prices.mean()) / prices.std()
    np.testing.assert_allclose(dense[:, names.index("price")], expected, atol=1e-5)
    far = fitted.transform(feeds_of([(0, 0, "", "", 1e20, 1, 0, "")]), "dense")
    assert far[0, names.index("price")] == CLIP
    assert dense[:, [names.index(f"member={code}") for code in range(3)]].tolist()[2] == [0, 0, 1]


def test_what_is_learned_is_the_training_rows_and_nothing_else(
    pipeline: Pipeline, fitted: FittedFeatures
) -> None:
    before = fitted.model_dump_json()
    fitted.transform(feeds_of([(0, 0, "Rom", "x", 1e6, 1e6, 0, "")]), "dense")
    assert fitted.model_dump_json() == before
    assert "Rom" not in before
    again = fit(pipeline, feeds_of(TAUGHT), np.array([1, 0, 1, 1, 0]))
    assert again == fitted


def test_a_column_without_any_value_is_constant(pipeline: Pipeline) -> None:
    rows: list[tuple[Any, ...]] = [(0, 0, "a", "a", np.nan, np.nan, np.nan, "")] * 3
    fitted = fit(pipeline, feeds_of(rows), np.array([0, 1, 1]))
    dense = fitted.transform(feeds_of(rows), "dense")
    assert (dense[:, fitted.names("dense").index("price")] == 0).all()


def test_one_hot_columns_are_the_most_frequent_words_in_every_encoding(
    fitted: FittedFeatures,
) -> None:
    assert column(fitted, TAUGHT, "city_is=Graz") == [1, 1, 0, 0, 0]
    assert column(fitted, [(0, 0, "Rom", "a", 0, 0, 0, "")], "city_is=Graz") == [0]
    assert [name for name in fitted.names("dense") if name.startswith("city_is")] == [
        "city_is=Graz",
        "city_is=Enns",
    ]


def test_an_order_is_the_declared_one_and_knows_words_that_did_not_teach(
    fitted: FittedFeatures,
) -> None:
    rows = [(0, 0, "", shop, 0, 0, 0, "") for shop in ("b", "a", "", "c")]
    np.testing.assert_array_equal(column(fitted, rows, "shop_rank"), [0, 1, 2, np.nan])


def test_scales_are_learned_from_the_training_rows_and_cut_off(fitted: FittedFeatures) -> None:
    prices = np.array([1.0, 3.0, 11.0, 11.0])
    rows = [(0, 0, "", "", price, 1, 0, "") for price in (1, 11, 1000, -1000, np.nan)]
    standard = column(fitted, rows, "price_standard")
    assert standard[0] == pytest.approx((1 - prices.mean()) / prices.std())
    np.testing.assert_array_equal(column(fitted, rows, "price_range"), [0, 1, 1, 0, np.nan])
    low, middle, high = np.quantile(prices, [0.25, 0.5, 0.75])
    robust = column(fitted, rows, "price_robust")
    assert robust[0] == pytest.approx((1 - middle) / (high - low))
    assert robust[2:4] == [5, -5]
    assert column(fitted, rows, "price_log")[2:4] == pytest.approx([np.log(1001), -np.log(1001)])


def test_what_is_missing_is_filled_from_the_training_rows_and_told(fitted: FittedFeatures) -> None:
    rows = [
        (0, NULL_TIME, "", "", np.nan, np.nan, np.nan, ""),
        (0, 0, "", "a", np.inf, 2.0, 0.0, ""),
    ]
    assert column(fitted, rows, "price_or_mean") == [6.5, 6.5]
    assert column(fitted, rows, "price_or_median") == [7, 7]
    assert column(fitted, rows, "count_or_9") == [9, 2]
    for name in ("no_price", "no_shop", "never_seen", "no_member"):
        assert column(fitted, rows, name) == [1, 0]


def test_an_aggregate_knows_the_days_before_a_row_and_no_others(pipeline: Pipeline) -> None:
    random = np.random.default_rng(2)
    times = np.sort(random.integers(0, 20 * 86_400, 300)).tolist()
    taught: list[tuple[Any, ...]] = [
        (time, time, random.choice(["Graz", "Wien", "Rom"]), "a", price, 1.0, 1.0, "")
        for time, price in zip(times, random.choice([1.0, 5.0, np.nan], 300).tolist(), strict=True)
    ]
    fitted = fit(pipeline, feeds_of(taught), target_of(pipeline, 300))

    def told(asked: list[tuple[Any, ...]], days: int) -> list[list[float]]:
        """Prices of the rows that a window of so many days before each row's day holds."""
        return [
            [
                row[4]
                for row in taught
                if row[2] == city and 1 <= time // 86_400 - row[0] // 86_400 <= days
            ]
            for time, _, city, *_ in asked
        ]

    counts = [len(prices) for prices in told(taught, 2)]
    assert column(fitted, taught, "city_days") == counts
    assert max(counts) > 10
    known = [[price for price in prices if price == price] for prices in told(taught, 3)]
    means = [np.mean(prices) if prices else np.nan for prices in known]
    np.testing.assert_allclose(
        np.array(column(fitted, taught, "city_mean")), np.array(means), rtol=1e-6
    )
    # Whoever asks later sees the window that ended with the last day that taught.
    day = times[-1] // 86_400 + 1
    later = [(at * 86_400, 0, "Wien", "a", 0, 0, 0, "") for at in (day, day + 1, 400)]
    assert column(fitted, later, "city_days") == [len(told(later[:1], 2)[0])] * 3
    unknown = [(day * 86_400, 0, "Linz", "a", 0, 0, 0, ""), (-1, 0, "Wien", "a", 0, 0, 0, "")]
    assert column(fitted, unknown, "city_days") == [0, 0]
    assert np.isnan(column(fitted, unknown, "city_mean")).all()


def test_the_table_of_an_aggregate_is_bounded(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("everloop_features.features.CELLS", 30)
    rows: list[tuple[Any, ...]] = [
        (day * 86_400, 0, city, "a", 2.0, 1, 1, "")
        for day in range(10)
        for city in ["Graz", "Graz", "Wien", "Wien", "Linz"]
    ]
    fitted = fit(pipeline, feeds_of(rows), target_of(pipeline, 50))
    asked = [(10 * 86_400, 0, city, "a", 0, 0, 0, "") for city in ("Graz", "Wien", "Linz")]
    assert column(fitted, asked, "city_days") == [4, 4, 0]
    monkeypatch.setattr("everloop_features.features.MOST_DAYS", 3)
    newest = fit(pipeline, feeds_of(rows), target_of(pipeline, 50))
    assert column(newest, asked, "city_days") == [4, 4, 2]
    assert {len(item.table[0]) for item in newest.numeric if isinstance(item, Aggregate)} <= {2, 4}


def test_words_are_counted_by_the_bucket_of_their_hash(fitted: FittedFeatures) -> None:
    texts = ("the big the", "the", "big", "", "  ")
    rows = [(0, 0, "", "", 0, 0, 0, text) for text in texts]
    matrix = np.stack([column(fitted, rows, f"note#{bucket}") for bucket in range(5)], axis=1)
    np.testing.assert_array_equal(matrix[0], 2 * matrix[1] + matrix[2])
    assert matrix.sum(axis=1).tolist() == [3, 1, 1, 0, 0]
