"""Linear models: logistic regression, and ridge regression for numbers."""

from __future__ import annotations

from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt
import onnx
from sklearn.linear_model import LogisticRegression, Ridge

from everloop_contracts.pipeline import Task
from everloop_features import Encoding
from everloop_trainer.families.estimators import predict_by
from everloop_trainer.families.family import Family, Floats, Params, Problem, Range, Report, Space
from everloop_trainer.families.layers import layers_to_onnx


class LinearFamily:
    """Learns one weight per column."""

    encoding: ClassVar[Encoding] = "dense"
    space: ClassVar[Space] = {"penalty": Range(1e-3, 1e3, default=1.0, log=True)}

    def fit(
        self,
        problem: Problem,
        features: Floats,
        target: npt.NDArray[Any],
        params: Params,
        seed: int,
        report: Report | None = None,
        weights: Floats | None = None,
    ) -> Any:
        """Fits to convergence; there is nothing to report on the way."""
        if problem.task is Task.REGRESSION:
            model = Ridge(alpha=params["penalty"], random_state=seed)
        else:
            model = LogisticRegression(
                C=1 / params["penalty"], max_iter=300, tol=1e-3, random_state=seed
            )
        model.fit(features, target, sample_weight=weights)
        if report:
            report(1.0, lambda rows: predict_by(problem, model, rows))
        return model

    def predict(self, problem: Problem, model: Any, features: Floats) -> Floats:
        """Probabilities of the fitted classes, or numbers."""
        return predict_by(problem, model, features)

    def to_onnx(self, problem: Problem, model: Any, width: int) -> onnx.ModelProto:
        """One dense layer."""
        weight = np.asarray(model.coef_, dtype=np.float32).reshape(-1, width).T
        bias = np.asarray(model.intercept_, dtype=np.float32).reshape(-1)
        return layers_to_onnx(problem, [(weight, bias)])


FAMILY: Final[Family] = LinearFamily()
