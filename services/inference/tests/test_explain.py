"""Explanations add up, are fair, and know their limits."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from google.protobuf.struct_pb2 import Struct
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from everloop_contracts.stubs.everloop.inference.v1 import inference_pb2 as native
from everloop_features.inputs import feeds_from_rows
from everloop_inference.adapters.engines import LocalEngines
from everloop_inference.batching import Capacity
from everloop_inference.domain import Call, ServedModel, ServingPolicy, Wanted
from everloop_inference.explain import Explanation, _walks
from everloop_inference.fakes import (
    INPUTS,
    ROW,
    Caller,
    MemoryArtifacts,
    request,
    sample_artifact,
)
from everloop_inference.http.app import HttpApp
from everloop_inference.models.load import Loader
from everloop_inference.models.swap import Models
from everloop_inference.predict import Predictor
from everloop_inference.servicer import NativeServicer
from everloop_runtime.errors import EverloopError, Kind

FIELDS = [spec.name for spec in INPUTS]
ODD = {**ROW, "carrier": "ZZ", "age": None, "distance": 2500.0, "departs": "2013-01-01T23:59:00Z"}


class Silent:
    """A log that is offended by anything."""

    def offer(self, *_: object) -> None:
        raise AssertionError("an explanation is no prediction")


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    artifacts, models = MemoryArtifacts(), Models()
    loader = Loader(artifacts, LocalEngines(), tmp_path_factory.mktemp("explain") / "cache")
    for task in ("binary", "multiclass", "regression"):
        artifact = sample_artifact(0.4, task)
        artifacts.runs[task] = artifact
        models.swap(loader.load(Wanted(task, 1, task, artifact.sha256), ServingPolicy()))
    return Predictor(models, Silent(), "epoch", Capacity(explain_rows=4, explain_requests=2))


def explain(
    predictor: Predictor, name: str, rows: list[dict[str, Any]], label: str = ""
) -> list[Explanation]:
    async def asking() -> list[Explanation]:
        _, found = await predictor.explain(name, rows, label, Call(time.perf_counter(), 0))
        return found

    return asyncio.run(asking())


def outputs(model: ServedModel, rows: list[dict[str, Any]]) -> Any:
    return model.run(feeds_from_rows(rows, INPUTS)).astype(np.float64)


def background(predictor: Predictor) -> list[dict[str, Any]]:
    return [ROW, {**ROW, "age": None, "carrier": "UA"}, {**ROW, "weekend": None, "stops": 4}]


@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(
    carrier=st.sampled_from(["AA", "UA", "ZZ"]),
    distance=st.floats(0, 3000, width=32),
    age=st.none() | st.floats(0, 50, width=32),
    stops=st.integers(0, 6),
    name=st.sampled_from(["binary", "multiclass", "regression"]),
)
def test_base_and_attributions_add_up_to_the_score(
    predictor: Predictor, carrier: str, distance: float, age: float | None, stops: int, name: str
) -> None:
    row = {**ROW, "carrier": carrier, "distance": distance, "age": age, "stops": stops}
    model = predictor.models.get(name)
    (found,) = explain(predictor, name, [row])
    (output,) = outputs(model, [row])
    column = {"binary": 1, "regression": 0}.get(name, int(output.argmax()))
    assert found.label == (model.classes[column] if model.classes else "")
    assert found.score == pytest.approx(output[column], abs=1e-7)
    mean = outputs(model, background(predictor))[:, column].mean()
    assert found.base_score == pytest.approx(mean, abs=1e-6)
    assert found.base_score + sum(found.attributions) == pytest.approx(found.score, abs=1e-9)


def test_where_fields_do_not_interact_the_attributions_are_exact(predictor: Predictor) -> None:
    """The regression sample is a sum over its fields: each one's Shapley value is its own mean change."""
    model = predictor.models.get("regression")
    (found,) = explain(predictor, "regression", [ODD])
    others = background(predictor)
    for field, value in zip(FIELDS, found.attributions, strict=True):
        changed = [{**row, field: ODD[field]} for row in others]
        expected = (outputs(model, changed) - outputs(model, others)).mean()
        assert value == pytest.approx(expected, abs=1e-5), field


def test_where_fields_interact_the_attributions_are_near_the_exact_ones(
    predictor: Predictor,
) -> None:
    model = predictor.models.get("binary")
    (found,) = explain(predictor, "binary", [ODD])

    def worth(fields: tuple[str, ...]) -> float:
        rows = [{**row, **{field: ODD[field] for field in fields}} for row in background(predictor)]
        return float(outputs(model, rows)[:, 1].mean())

    for field, value, error in zip(FIELDS, found.attributions, found.errors, strict=True):
        others = [name for name in FIELDS if name != field]
        exact = sum(
            math.factorial(size)
            * math.factorial(len(others) - size)
            / math.factorial(len(FIELDS))
            * (worth((*chosen, field)) - worth(chosen))
            for size in range(len(FIELDS))
            for chosen in itertools.combinations(others, size)
        )
        assert abs(value - exact) <= max(3 * error, 1e-6), field


def test_a_field_that_is_as_in_the_background_gets_nothing(predictor: Predictor) -> None:
    (found,) = explain(predictor, "binary", [ODD])
    # All background rows have the same distance and departure.
    (same,) = explain(predictor, "binary", [{**ODD, "distance": ROW["distance"]}])
    assert found.attributions[FIELDS.index("distance")] < 0
    assert same.attributions[FIELDS.index("distance")] == 0


def test_another_class_may_be_asked_for_and_the_answer_is_always_the_same(
    predictor: Predictor,
) -> None:
    (of_true,) = explain(predictor, "binary", [ODD], "true")
    (of_false,) = explain(predictor, "binary", [ODD], "false")
    assert (of_true.label, of_false.label) == ("true", "false")
    assert of_false.attributions == pytest.approx([-x for x in of_true.attributions], abs=1e-6)
    assert explain(predictor, "binary", [ROW, ODD])[1] == of_true
    for name, label in (("binary", "maybe"), ("regression", "true")):
        with pytest.raises(EverloopError) as caught:
            explain(predictor, name, [ODD], label)
        assert (caught.value.kind, caught.value.reason) == (Kind.INVALID, "UNKNOWN_LABEL")


def test_limits(predictor: Predictor) -> None:
    for count, reason in ((0, "NO_ROWS"), (5, "TOO_MANY_ROWS")):
        with pytest.raises(EverloopError) as caught:
            explain(predictor, "binary", [ROW] * count)
        assert caught.value.reason == reason

    async def crowd() -> list[Any]:
        now = time.perf_counter()
        calls = [predictor.explain("binary", [ROW], "", Call(now, 0)) for _ in range(3)]
        late = await asyncio.gather(*calls, return_exceptions=True)
        early = predictor.explain("binary", [ROW], "", Call(now, 0, now))
        return [*late, *await asyncio.gather(early, return_exceptions=True)]

    *answered, third, late = asyncio.run(crowd())
    assert all(isinstance(answer, tuple) for answer in answered)
    assert (third.kind, third.reason) == (Kind.EXHAUSTED, "OVERLOADED")
    assert third.retry_after > 0
    assert late.kind is Kind.DEADLINE


def test_both_doors_explain_alike(predictor: Predictor) -> None:
    async def asking() -> tuple[dict[str, Any], native.ExplainResponse, int]:
        app, servicer = HttpApp(predictor, "mark", 1 << 20), NativeServicer(predictor)
        body = orjson.dumps({"rows": [ODD, ROW], "label": "false"})
        status, _, content = await request(app, "POST", "/v1/models/binary:explain", body)
        assert status == 200, content
        bad = orjson.dumps({"rows": [ROW], "label": 7})
        refused, _, _ = await request(app, "POST", "/v1/models/binary:explain", bad)
        row, other = Struct(), Struct()
        row.update(ODD)
        other.update(ROW)
        asked = native.ExplainRequest(model="binary", rows=[row, other], label="false")
        return orjson.loads(content), await servicer.Explain(asked, Caller()), refused

    document, message, refused = asyncio.run(asking())
    assert refused == 422
    assert (document["model"], document["version"]) == (message.model, message.version)
    for ours, theirs in zip(document["explanations"], message.explanations, strict=True):
        assert ours["label"] == theirs.label == "false"
        assert ours["score"] == theirs.score
        assert ours["base_score"] == theirs.base_score
        assert [
            (item["field"], item["value"], item["standard_error"]) for item in ours["attributions"]
        ] == [(item.field, item.value, item.standard_error) for item in theirs.attributions]


def test_walks_go_from_the_background_to_the_row_one_field_at_a_time() -> None:
    orders, taken = _walks(5, 3)
    assert orders.shape == (6, 5)
    assert (np.sort(orders, axis=1) == np.arange(5)).all()
    assert (orders[3:] == orders[:3, ::-1]).all()
    for order, steps in zip(orders, taken.reshape(6, 4, 5), strict=True):
        for count, step in enumerate(steps, start=1):
            assert set(np.flatnonzero(step)) == set(order[:count])


def test_a_model_of_one_field_owes_everything_to_it(tmp_path: Path) -> None:
    orders, taken = _walks(1, 2)
    assert (orders.tolist(), taken.shape) == ([[0]] * 4, (0, 1))
