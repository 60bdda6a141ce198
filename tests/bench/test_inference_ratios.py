"""The ratios that the inference benchmark is judged by."""

from __future__ import annotations

import pytest
from bench.inference.measure import Case, Sample
from bench.inference.outcome import Round, Rounds, result

HTTP = Case("http", "single", 8)


def of(**samples: tuple[float, float]) -> Round:
    """Throughput and p99 per door."""
    return Round(
        {
            Case(door, "single", 8): Sample(throughput, 1.0, p99, 1e6 / throughput, 0.0, 0)
            for door, (throughput, p99) in samples.items()
        },
        memory=2**20,
    )


def ratios(rounds: Rounds) -> dict[str, float]:
    return dict(result(rounds, {}, 4).ratios)


def test_the_best_peer_is_the_quickest_over_the_protocol_whatever_its_json() -> None:
    found = ratios(
        {
            "everloop": [of(http=(9000, 2.0), http_oip=(8000, 2.0))],
            "bentoml": [of(http=(1000, 5.0))],
            "mlserver": [of(http_oip=(3000, 8.0))],
        }
    )
    assert found["http.single.c8.vs_best_peer"] == 3.0
    assert found["http.single.c8.p99_vs_best_peer"] == 0.25
    assert found["http.single.c8.cpu_vs_best_peer"] == pytest.approx(0.3333)
    assert found["http_oip.single.c8.vs_best_peer"] == pytest.approx(2.667)
    assert "http.single.c8.vs_bare" not in found


def test_a_ratio_is_the_median_of_those_within_a_round() -> None:
    ours = [of(http=(throughput, 1.0)) for throughput in (1000, 6000, 9000)]
    theirs = [of(http=(throughput, 1.0)) for throughput in (500, 1000, 3000)]
    bare = [of(http=(throughput, 1.0)) for throughput in (2000, 6000, 10_000)]
    found = ratios({"everloop": ours, "litserve": theirs, "bare": bare})
    assert found["http.single.c8.vs_best_peer"] == 3.0
    assert found["http.single.c8.vs_bare"] == 0.9


def test_errors_of_all_rounds_are_counted() -> None:
    broken = Round({HTTP: Sample(1.0, 1.0, 1.0, 1.0, 0.0, 2)}, memory=0)
    figures = result({"ray": [broken, broken]}, {"bentoml": "no wheel"}, 4)
    assert [row["errors"] for row in figures.figures] == [4]
    assert "bentoml: no wheel" in figures.note
    assert not figures.ratios
