"""Calibrated probabilities are those of the data, and the export gives the same ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from onnx import TensorProto, helper

from everloop_contracts.pipeline import Costs
from everloop_features.graph import make_model
from everloop_trainer.calibrate import Calibrator, calibrate
from everloop_trainer.learn import cheapest

Floats = npt.NDArray[np.float32]


def scored(classes: int, rows: int = 20_000) -> tuple[npt.NDArray[Any], Floats]:
    """Truths, and probabilities of a model that is too sure of itself."""
    random = np.random.default_rng(5)
    logits = random.normal(size=(rows, classes))
    if classes == 2:
        logits[:, 0] = 0
        logits[:, 1] -= 1
    true = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    target = (random.random((rows, 1)) > true.cumsum(axis=1)).sum(axis=1)
    sure = np.exp(3 * logits) / np.exp(3 * logits).sum(axis=1, keepdims=True)
    return target, sure.astype(np.float32)


def exported(calibrator: Calibrator, probabilities: Floats) -> Floats:
    width = probabilities.shape[1]
    model = make_model(
        [helper.make_node("Identity", ["raw"], ["probabilities"])],
        [helper.make_tensor_value_info("raw", TensorProto.FLOAT, ["rows", width])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["rows", width])],
        [],
    )
    graph = calibrator.attach(model).SerializeToString()
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    answer: Floats = session.run(None, {"raw": probabilities})[0]
    return answer


def error(target: npt.NDArray[Any], probabilities: Floats) -> float:
    """Expected calibration error of the last class, by tenths."""
    scores, truth = probabilities[:, -1], target == probabilities.shape[1] - 1
    parts = np.array_split(np.argsort(scores), 10)
    return float(np.mean([abs(scores[p].mean() - truth[p].mean()) for p in parts]))


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("kind", ["sigmoid", "isotonic"])
def test_probabilities_become_those_of_the_data_and_the_export_agrees(
    kind: Any, classes: int
) -> None:
    target, probabilities = scored(classes)
    calibrator = calibrate(kind, target[:10_000], probabilities[:10_000])
    assert calibrator is not None
    fresh, truth = probabilities[10_000:], target[10_000:]
    calibrated = calibrator(fresh)
    assert error(truth, fresh) > 0.05
    assert error(truth, calibrated) < 0.03
    np.testing.assert_allclose(calibrated.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(exported(calibrator, fresh), calibrated, atol=2e-6)


@pytest.mark.parametrize("kind", ["sigmoid", "isotonic"])
@pytest.mark.parametrize("label", [0, 1])
def test_rows_of_one_class_only_and_certain_scores_give_probabilities_still(
    kind: Any, label: int
) -> None:
    probabilities = np.array([[1, 0], [0, 1], [0.5, 0.5], [0.5, 0.5]], np.float32)
    calibrator = calibrate(kind, np.full(4, label), probabilities)
    assert calibrator is not None
    calibrated = calibrator(probabilities)
    assert ((calibrated >= 0) & (calibrated <= 1)).all()
    np.testing.assert_allclose(exported(calibrator, probabilities), calibrated, atol=2e-6)


def test_nothing_is_calibrated_unless_asked_for() -> None:
    assert calibrate("none", np.array([0, 1]), np.full((2, 2), 0.5, np.float32)) is None


@pytest.mark.parametrize("costs", [Costs(), Costs(false_negative=9), Costs(false_positive=4)])
def test_the_threshold_costs_no_more_than_any_other(costs: Costs) -> None:
    random = np.random.default_rng(2)
    scores = random.random(500).round(2).astype(np.float32)  # with ties
    target = (random.random(500) < scores).astype(int)

    def cost(threshold: float) -> float:
        called = scores.astype(np.float64) >= threshold
        false_positives = (called & (target == 0)).sum()
        false_negatives = (~called & (target == 1)).sum()
        return float(
            costs.false_positive * false_positives + costs.false_negative * false_negatives
        )

    chosen = cheapest(costs, target, scores)
    assert cost(chosen) == min(cost(value) for value in np.linspace(0, 1.001, 2003))
    # Calibrated scores: where the expected costs of both answers are equal (Elkan 2001).
    expected = costs.false_positive / (costs.false_positive + costs.false_negative)
    assert abs(chosen - expected) < 0.12


@pytest.mark.parametrize("label", [0, 1])
def test_where_one_answer_is_always_right_it_is_always_given(label: int) -> None:
    scores = np.array([0.2, 0.9], np.float32)
    threshold = cheapest(Costs(), np.full(2, label), scores)
    assert (scores.astype(np.float64) >= threshold).tolist() == [bool(label)] * 2
