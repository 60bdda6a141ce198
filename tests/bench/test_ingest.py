"""The arithmetic of the ingest benchmark, and that its records are what its pipeline takes."""

from __future__ import annotations

import pytest
from bench.ingest.__main__ import Rounds, judge, judge_memory
from bench.ingest.measure import MIB, Cost, growth, median_cost, row
from bench.ingest.readings import SENSORS, SMALL, readings, specification

from everloop_contracts.pipeline import Pipeline
from everloop_ingest.validate import Validator


@pytest.mark.parametrize(("sensors", "low", "high"), [(SENSORS, 950, 1100), (SMALL, 200, 300)])
def test_all_records_are_valid_alike_and_of_their_size(sensors: int, low: int, high: int) -> None:
    validator = Validator(Pipeline.model_validate(specification("p", sensors)), 4096)
    records = list(readings(300, sensors))
    validated = validator([value for _, value in records])
    assert validated.rejections == []
    assert [key.decode() for key, _ in records] == validated.rows.column("reading_id").to_pylist()
    assert len({key for key, _ in records}) == 300
    assert low < sum(len(value) for _, value in records) / 300 < high
    assert records == list(readings(300, sensors))


def test_a_row_tells_a_cost_by_second_record_and_core() -> None:
    assert row("ours", Cost(2.0, 0.5, 1000, 10 * MIB)) == {
        "what": "ours",
        "records": 1000,
        "seconds": 2.0,
        "records/s": 500,
        "MiB/s": 5.0,
        "processor µs/record": 500.0,
        "records/s per core": 2000,
    }


def test_each_figure_has_its_own_median() -> None:
    costs = [Cost(1.0, 9.0, 10, 5), Cost(2.0, 8.0, 10, 5), Cost(9.0, 1.0, 10, 5)]
    assert median_cost(costs) == Cost(2.0, 8.0, 10, 5)


def test_a_ratio_is_ours_over_bare() -> None:
    found = Rounds(
        {100: [Cost(2.0, 1.0, 100, 1)]},
        {100: [Cost(1.0, 1.0, 100, 1)]},
        [Cost(4.0, 3.0, 100, 1)],
        [Cost(1.0, 1.5, 100, 1)],
    )
    assert judge(found, 0.0).ratios == {
        "100.vs_bare_consumer": 0.5,
        "stream.vs_bare_producer": 0.25,
        "stream.per_core_vs_bare_producer": 0.5,
    }


def test_growth_leaves_out_the_first_fifth() -> None:
    flat = [(done, 50.0 if done <= 20 else 100.0) for done in range(1, 101)]
    assert growth(flat) == 1.0
    leaking = [(done, 100.0 + done) for done in range(1, 101)]
    assert growth(leaking) == pytest.approx(190.5 / 130.5, rel=1e-3)


def test_memory_is_shown_at_most_for_each_tenth() -> None:
    samples = [(done, 100.0 + done % 10) for done in range(1, 101)]
    result = judge_memory(samples, 0.0)
    assert [line["records"] for line in result.figures] == list(range(10, 101, 10))
    assert {line["resident MiB, at most"] for line in result.figures} == {109.0}
