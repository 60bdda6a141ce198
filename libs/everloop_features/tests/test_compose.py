"""A feature graph and an estimator become one model from raw columns to the output."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from everloop_contracts.pipeline import Pipeline
from everloop_features import FittedFeatures, feeds_from_rows, fit, inputs_of
from everloop_features.graph import compose_model, feature_graph, make_model

ROW: dict[str, object] = {
    "at": "2013-07-01T16:30:00Z",
    "city": "Graz",
    "price": 1.5,
}


def estimator(width: int, output: str = "probabilities") -> onnx.ModelProto:
    weights = numpy_helper.from_array(np.ones((width, 1), dtype=np.float32), "price")
    return make_model(
        [
            helper.make_node("MatMul", ["features", "price"], [output]),
            helper.make_node("Identity", ["features"], ["label"]),
        ],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", width])],
        [
            helper.make_tensor_value_info("label", TensorProto.FLOAT, ["n", width]),
            helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n", 1]),
        ],
        [weights],
    )


@pytest.fixture
def fitted(pipeline: Pipeline) -> FittedFeatures:
    return fit(pipeline, feeds_from_rows([ROW], inputs_of(pipeline)), np.array([1]))


def test_raw_columns_in_and_one_output_out(fitted: FittedFeatures) -> None:
    width = len(fitted.names("dense"))
    model = compose_model(feature_graph(fitted, "dense"), estimator(width))
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    feeds = feeds_from_rows([ROW, {**ROW, "city": "Rom"}], fitted.inputs)
    assert [value.name for value in session.get_inputs()] == list(feeds)
    assert [value.name for value in session.get_outputs()] == ["probabilities"]
    expected = fitted.transform(feeds, "dense").sum(axis=1, keepdims=True)
    np.testing.assert_allclose(session.run(None, feeds)[0], expected, atol=1e-5)


def test_an_estimator_without_the_output_is_refused(fitted: FittedFeatures) -> None:
    width = len(fitted.names("dense"))
    with pytest.raises(ValueError, match="no output 'probabilities' or 'score'"):
        compose_model(feature_graph(fitted, "dense"), estimator(width, "answer"))
