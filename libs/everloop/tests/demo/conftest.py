"""What the demo's tests share."""

from __future__ import annotations

import pytest

from everloop.demo import flights, tensors
from everloop.demo.flights import Flights
from everloop.demo.tensors import Columns
from everloop.stack.home import repository_root
from everloop_contracts.pipeline import Pipeline, load_pipeline


@pytest.fixture(scope="session")
def pipeline() -> Pipeline:
    return load_pipeline(repository_root() / "pipelines" / "flight-delays.yaml")


@pytest.fixture(scope="session")
def two_days() -> Flights:
    """The first two days of each month."""
    return flights.load(days_per_month=2)


@pytest.fixture(scope="session")
def columns(two_days: Flights, pipeline: Pipeline) -> Columns:
    return tensors.columns_of(two_days, pipeline)
