"""The fitted features as ONNX nodes, and one model from raw columns to the estimator's output.

A single row spends its time in the number of nodes, not in their arithmetic: columns are joined first and every
step is done once for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, compose, helper, numpy_helper

from everloop_contracts.pipeline import FieldType
from everloop_features.features import (
    CLIP,
    DAY,
    LIMIT,
    MONDAY,
    Aggregate,
    AnyNumeric,
    Bins,
    Category,
    Cross,
    DatePart,
    Encoding,
    FittedFeatures,
    Flag,
    Hash,
    Impute,
    Missing,
    Number,
    OneHot,
    Ordinal,
    Ratio,
    Scale,
    TargetMean,
    day_bounds,
)
from everloop_features.inputs import NULL_TIME

__all__ = ["FEATURES", "IR_VERSION", "OPSETS", "compose_model", "feature_graph", "make_model"]

OPSETS: Final = {"": 20, "ai.onnx.ml": 3}
"""Operator sets of every graph: estimators are exported with the same ones."""
CONTRIBUTED: Final = ("com.microsoft", 1)
"""ONNX Runtime's own operators, of which `hash` features take one: ONNX has none that hashes texts."""
IR_VERSION: Final = 9
FEATURES: Final = "features"
"""Name of the feature matrix: output of the feature graph, input of an estimator."""

_ELEMENT: Final = {FieldType.STRING: TensorProto.STRING, FieldType.TIMESTAMP: TensorProto.INT64}


class _Graph:
    """Nodes under construction; methods return the name of the value they add."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, values: npt.ArrayLike, dtype: type[np.generic]) -> str:
        name = f"everloop/constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values, dtype=dtype), name))
        return name

    def add(
        self,
        operator: str,
        *inputs: str,
        output: str = "",
        domain: str = "",
        also: int = 0,
        **options: Any,
    ) -> str:
        """Adds a node; `also` more outputs, which nobody looks at."""
        name = output or f"everloop/{operator}_{len(self.nodes)}"
        outputs = [name, *(f"{name}_{number}" for number in range(also))]
        self.nodes.append(
            helper.make_node(operator, list(inputs), outputs, name=name, domain=domain, **options)
        )
        return name

    def join(self, columns: Sequence[str]) -> str:
        return self.add("Concat", *columns, axis=1) if len(columns) > 1 else columns[0]


def feature_graph(fitted: FittedFeatures, encoding: Encoding) -> onnx.ModelProto:
    """Exports `fitted.transform(·, encoding)`: raw columns `[rows, 1]` in, `features` `[rows, width]` out."""
    graph = _Graph()
    words = {
        field: graph.add(
            "LabelEncoder",
            field,
            domain="ai.onnx.ml",
            keys_strings=list(vocabulary) or [""],
            values_int64s=list(range(len(vocabulary))) or [0],
            default_int64=len(vocabulary),
        )
        for field, vocabulary in fitted.vocabularies.items()
    }
    blocks = []
    if fitted.numeric:
        numbers = graph.join([_numeric(graph, feature, words) for feature in fitted.numeric])
        beyond = graph.add("Greater", graph.add("Abs", numbers), graph.constant(LIMIT, np.float32))
        numbers = graph.add("Where", beyond, graph.constant(np.nan, np.float32), numbers)
        blocks.append(numbers if encoding == "ordinal" else _standardised(graph, fitted, numbers))
    if fitted.coded:
        codes = graph.join([_code(graph, feature, words) for feature in fitted.coded])
        sizes = [feature.size - 1 for feature in fitted.coded]
        if encoding == "ordinal":
            capped = graph.add("Min", codes, graph.constant([sizes], np.int64))
            blocks.append(graph.add("Cast", capped, to=TensorProto.FLOAT))
        else:
            blocks.append(_one_hot(graph, fitted.widths, codes))
    width = len(fitted.names(encoding))
    if len(blocks) > 1:
        graph.add("Concat", *blocks, output=FEATURES, axis=1)
    else:
        graph.add("Identity", *blocks, output=FEATURES)
    inputs = [
        helper.make_tensor_value_info(
            spec.name, _ELEMENT.get(spec.type, TensorProto.FLOAT), ["rows", 1]
        )
        for spec in fitted.inputs
    ]
    output = helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["rows", width])
    return make_model(graph.nodes, inputs, [output], graph.constants)


def make_model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    constants: Sequence[onnx.TensorProto],
) -> onnx.ModelProto:
    """A model with the operator sets that all graphs share."""
    graph = helper.make_graph(list(nodes), "everloop", list(inputs), list(outputs), list(constants))
    used = dict(OPSETS)
    if any(node.domain == CONTRIBUTED[0] for node in nodes):
        used |= [CONTRIBUTED]
    opsets = [helper.make_opsetid(domain, version) for domain, version in used.items()]
    return helper.make_model(
        graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="everloop"
    )


def compose_model(features: onnx.ModelProto, estimator: onnx.ModelProto) -> onnx.ModelProto:
    """Joins a feature graph and an estimator into one model with raw columns in and one output.

    Args:
        features: what `feature_graph` made.
        estimator: one float input `[rows, width]`; its first output named `probabilities` or `score` is kept.

    Raises:
        ValueError: the estimator has no such output, or a raw input has that name.
    """
    named = [value.name for value in estimator.graph.output]
    kept = next((name for name in named if name in ("probabilities", "score")), None)
    if kept is None:
        raise ValueError(f"the estimator has no output 'probabilities' or 'score', only {named}")
    if kept in [value.name for value in features.graph.input]:
        raise ValueError(f"an input field cannot be called '{kept}', the model's output is")
    prefixed = compose.add_prefix(estimator, "estimator/", rename_outputs=False)
    joined = compose.merge_models(
        features,
        prefixed,
        io_map=[(FEATURES, prefixed.graph.input[0].name)],
        outputs=[kept],
        producer_name="everloop",
    )
    # Stale shapes of the parts can contradict the joined graph's.
    del joined.graph.value_info[:]
    onnx.checker.check_model(joined)
    return joined


def _numeric(graph: _Graph, feature: AnyNumeric, words: dict[str, str]) -> str:
    match feature:
        case Number():
            return feature.of
        case Ratio():
            return graph.add("Div", feature.of, feature.by)
        case Bins():
            edges = graph.constant([feature.edges], np.float32)
            reached = graph.add("GreaterOrEqual", feature.of, edges)
            ones = graph.add("Cast", reached, to=TensorProto.FLOAT)
            count = graph.add("ReduceSum", ones, graph.constant([1], np.int64), keepdims=1)
            return graph.add("Add", count, graph.add("Sub", feature.of, feature.of))
        case TargetMean():
            table = graph.constant(feature.table, np.float32)
            return graph.add(
                "Flatten", graph.add("Gather", table, words[feature.of], axis=0), axis=1
            )
        case OneHot():
            own = graph.constant([range(feature.size)], np.int64)
            return graph.add(
                "Cast", graph.add("Equal", words[feature.of], own), to=TensorProto.FLOAT
            )
        case Ordinal():
            return graph.add(
                "LabelEncoder",
                feature.of,
                domain="ai.onnx.ml",
                keys_strings=list(feature.order),
                values_floats=[float(place) for place in range(len(feature.order))],
                default_float=float("nan"),
            )
        case Scale():
            return _scaled(graph, feature)
        case Impute():
            limit = graph.constant(LIMIT, np.float32)
            beyond = graph.add("Greater", graph.add("Abs", feature.of), limit)
            gone = graph.add("Or", graph.add("IsNaN", feature.of), beyond)
            return graph.add("Where", gone, graph.constant(feature.value, np.float32), feature.of)
        case Missing():
            return graph.add("Cast", _missing(graph, feature), to=TensorProto.FLOAT)
        case Hash():
            return _hashed(graph, feature)
        case Aggregate():
            return _aggregate(graph, feature, words[feature.by])


def _aggregate(graph: _Graph, feature: Aggregate, words: str) -> str:
    low, high = (graph.constant(bound, np.int64) for bound in day_bounds(feature))
    since = graph.add("Sub", graph.add("Clip", feature.time, low, high), low)
    day = graph.add("Div", since, graph.constant(DAY, np.int64))
    last, width = len(feature.table) - 1, len(feature.table[0])
    row = graph.add("Min", words, graph.constant(last, np.int64))
    cell = graph.add("Add", graph.add("Mul", row, graph.constant(width, np.int64)), day)
    table = graph.constant(np.array(feature.table).ravel(), np.float32)
    return graph.add("Gather", table, cell, axis=0)


def _scaled(graph: _Graph, feature: Scale) -> str:
    value = feature.of
    if feature.log:
        grown = graph.add("Add", graph.add("Abs", value), graph.constant(1, np.float32))
        value = graph.add("Mul", graph.add("Sign", value), graph.add("Log", grown))
    centred = graph.add("Sub", value, graph.constant(feature.centre, np.float32))
    moved = graph.add("Mul", centred, graph.constant(feature.factor, np.float32))
    low, high = (graph.constant(bound, np.float32) for bound in feature.bounds)
    # What Clip makes of NaN is left open.
    return graph.add("Where", graph.add("IsNaN", moved), moved, graph.add("Clip", moved, low, high))


def _missing(graph: _Graph, feature: Missing) -> str:
    if feature.type is FieldType.STRING:
        return graph.add("Cast", _is_empty(graph, feature.of), to=TensorProto.BOOL)
    if feature.type is FieldType.TIMESTAMP:
        return graph.add("Equal", feature.of, graph.constant(NULL_TIME, np.int64))
    return graph.add("IsNaN", feature.of)


def _is_empty(graph: _Graph, texts: str) -> str:
    """1 for an empty text, else 0."""
    return graph.add(
        "LabelEncoder",
        texts,
        domain="ai.onnx.ml",
        keys_strings=[""],
        values_int64s=[1],
        default_int64=0,
    )


def _hashed(graph: _Graph, feature: Hash) -> str:
    """`[rows, buckets]`: the words of a row are compared with the buckets, and those that are there counted."""
    words = graph.add("StringSplit", feature.of, also=1, delimiter=" ")  # [rows, 1, most words]
    hashes = graph.add("MurmurHash3", words, domain=CONTRIBUTED[0], positive=1, seed=0)
    whole = graph.add("Cast", hashes, to=TensorProto.INT64)
    places = graph.add("Mod", whole, graph.constant(feature.buckets, np.int64))
    # A bucket that there is not, for what pads the shorter rows.
    none = graph.constant(-1, np.int64)
    padding = graph.add("Cast", _is_empty(graph, words), to=TensorProto.BOOL)
    kept = graph.add("Where", padding, none, places)
    spread = graph.add("Unsqueeze", kept, graph.constant([3], np.int64))
    found = graph.add("Equal", spread, graph.constant(range(feature.buckets), np.int64))
    ones = graph.add("Cast", found, to=TensorProto.FLOAT)
    return graph.add("ReduceSum", ones, graph.constant([1, 2], np.int64), keepdims=0)


def _standardised(graph: _Graph, fitted: FittedFeatures, numbers: str) -> str:
    medians = graph.constant([fitted.medians], np.float32)
    filled = graph.add("Where", graph.add("IsNaN", numbers), medians, numbers)
    centred = graph.add("Sub", filled, graph.constant([fitted.means], np.float32))
    scaled = graph.add("Mul", centred, graph.constant([fitted.scales], np.float32))
    bounds = graph.constant(-CLIP, np.float32), graph.constant(CLIP, np.float32)
    return graph.add("Clip", scaled, *bounds)


def _code(graph: _Graph, feature: Category | Flag | DatePart | Cross, words: dict[str, str]) -> str:
    """Codes `[rows, 1]`; those of a category are not capped at its size yet."""
    match feature:
        case Category():
            return words[feature.of]
        case Flag():
            one = graph.add("Not", graph.add("Equal", feature.of, graph.constant(0, np.float32)))
            flags = graph.add("Cast", one, to=TensorProto.INT64)
            missing = graph.add("IsNaN", feature.of)
            return graph.add("Where", missing, graph.constant(2, np.int64), flags)
        case DatePart():
            return _date_part(graph, feature)
        case Cross():
            first, second = (words[field] for field in feature.of)
            shifted = graph.add("Mul", first, graph.constant(feature.stride, np.int64))
            return graph.add(
                "LabelEncoder",
                graph.add("Add", shifted, second),
                domain="ai.onnx.ml",
                keys_int64s=list(feature.keys) or [-1],
                values_int64s=list(range(len(feature.keys))) or [0],
                default_int64=feature.size - 1,
            )


def _date_part(graph: _Graph, feature: DatePart) -> str:
    def constant(value: int) -> str:
        return graph.constant(value, np.int64)

    if feature.part == "hour":
        within, unit = graph.add("Mod", feature.of, constant(DAY)), 3600
    else:
        week = constant(7 * DAY)
        # Into the week before the shift: a shift of an extreme timestamp would overflow.
        shifted = graph.add("Add", graph.add("Mod", feature.of, week), constant(MONDAY))
        within, unit = graph.add("Mod", shifted, week), DAY
    part = graph.add("Div", within, constant(unit))
    null = graph.add("Equal", feature.of, constant(NULL_TIME))
    return graph.add("Where", null, constant(feature.size - 1), part)


def _one_hot(graph: _Graph, widths: Sequence[int], codes: str) -> str:
    """All categories at once: each code is repeated over its columns and compared with the columns' own codes."""
    capped = graph.add("Min", codes, graph.constant([[width - 1 for width in widths]], np.int64))
    source = [index for index, width in enumerate(widths) for _ in range(width)]
    own = [code for width in widths for code in range(width)]
    repeated = graph.add("Gather", capped, graph.constant(source, np.int64), axis=1)
    return graph.add(
        "Cast",
        graph.add("Equal", repeated, graph.constant([own], np.int64)),
        to=TensorProto.FLOAT,
    )
