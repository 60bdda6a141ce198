"""Every family learns every task it takes, and its export gives its own outputs."""

from __future__ import annotations

import importlib.util
import sys
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

from everloop_contracts.pipeline import Task
from everloop_trainer.families import Problem, Range, known_families, load_family
from everloop_trainer.families.ft_transformer import tokens_of

PROBLEMS = [Problem(Task.BINARY, 2), Problem(Task.MULTICLASS, 3), Problem(Task.REGRESSION, 0)]
NAMES = [
    "ft_transformer",
    "hist_gradient_boosting",
    "keras_mlp",
    "logistic_regression",
    "mlp",
    "random_forest",
]
needs_tensorflow = pytest.mark.skipif(
    find_spec("tensorflow") is None, reason="TensorFlow, an extra of the trainer, is not installed"
)
FAMILIES = [
    pytest.param(name, marks=needs_tensorflow) if name == "keras_mlp" else name for name in NAMES
]


def rows_of(problem: Problem, missing: bool) -> tuple[npt.NDArray[np.float32], npt.NDArray[Any]]:
    random = np.random.default_rng(3)
    features = random.normal(size=(1500, 6)).astype(np.float32)
    target: npt.NDArray[Any]
    signal = features[:, 0] + 0.5 * features[:, 1] ** 2 + 0.3 * random.normal(size=1500)
    if problem.task is Task.REGRESSION:
        target = 100 + 20 * signal
    else:
        target = np.digitize(signal, [0.3] if problem.task is Task.BINARY else [-0.2, 0.8])
    if missing:
        features[random.random(features.shape) < 0.2] = np.nan
    return features, target


def test_every_file_of_a_family_is_found() -> None:
    assert sorted(known_families()) == NAMES


def test_an_unknown_family_is_named_with_those_that_there_are() -> None:
    with pytest.raises(LookupError, match=r"'perceptron'; there are: .*logistic_regression"):
        load_family("perceptron")


def test_a_family_whose_library_is_missing_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "everloop_trainer.families.keras_mlp", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LookupError, match=r"pip install 'everloop-trainer\[tensorflow\]'"):
        load_family("keras_mlp")


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: str(problem.task))
@pytest.mark.parametrize("name", FAMILIES)
def test_the_export_gives_the_model_s_own_outputs(name: str, problem: Problem) -> None:
    family = load_family(name)
    features, target = rows_of(problem, missing=family.encoding == "ordinal")
    params = {key: item.default for key, item in family.space.items()}
    shares: list[float] = []

    def report(share: float, predict: Any) -> None:
        shares.append(share)
        assert predict(features[:5]).shape == (5, problem.classes or 1)

    model = family.fit(problem, features, target, params, seed=1, report=report)
    expected = family.predict(problem, model, features)
    graph = family.to_onnx(problem, model, features.shape[1]).SerializeToString()
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    [actual] = session.run(None, {"features": features})
    scale = 100 if problem.task is Task.REGRESSION else 1
    np.testing.assert_allclose(actual, expected, atol=2e-6 * scale, rtol=1e-5)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    if problem.task is Task.REGRESSION:
        assert np.corrcoef(expected[:, 0], target)[0, 1] > 0.7
    else:
        np.testing.assert_allclose(expected.sum(axis=1), 1, atol=1e-5)
        majority = np.bincount(target).max() / len(target)
        assert (expected.argmax(axis=1) == target).mean() > majority + 0.1


@pytest.mark.parametrize("name", FAMILIES)
def test_the_same_seed_gives_the_same_model(name: str) -> None:
    family, problem = load_family(name), PROBLEMS[0]
    features, target = rows_of(problem, missing=False)
    params = {key: item.default for key, item in family.space.items()}
    first, second = (family.fit(problem, features, target, params, seed=5) for _ in range(2))
    np.testing.assert_array_equal(
        family.predict(problem, first, features), family.predict(problem, second, features)
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_defaults_lie_in_their_ranges(name: str) -> None:
    for item in load_family(name).space.values():
        if isinstance(item, Range):
            assert item.low <= item.default <= item.high
        else:
            assert item.default in item.values


def test_the_columns_of_a_category_are_one_token() -> None:
    numbers = np.random.default_rng(1).normal(size=(50, 2))
    carrier, flag = np.eye(3)[np.arange(50) % 3], np.eye(2)[np.arange(50) % 2]
    features = np.concatenate([numbers, carrier, flag], axis=1).astype(np.float32)
    assert tokens_of(features).tolist() == [0, 1, 2, 2, 2, 3, 3]


@pytest.mark.parametrize(
    "name", ["mlp", "ft_transformer", pytest.param("keras_mlp", marks=needs_tensorflow)]
)
def test_weights_count_in_a_network(name: str) -> None:
    family, problem = load_family(name), PROBLEMS[0]
    features, target = rows_of(problem, missing=False)
    params = {key: item.default for key, item in family.space.items()}
    heavy = np.where(target == 1, 8, 1).astype(np.float32)
    means = [
        family.predict(
            problem, family.fit(problem, features, target, params, seed=5, weights=w), features
        )[:, 1].mean()
        for w in (None, np.ones(len(target), np.float32), heavy)
    ]
    assert means[1] == pytest.approx(means[0], abs=1e-6)
    assert means[2] > means[0] + 0.05
