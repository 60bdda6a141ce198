"""The short ways from whole requests to blocks say what the long ways say, or nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from everloop_contracts.pipeline import FieldType
from everloop_contracts.stubs.inference import grpc_service_pb2 as oip
from everloop_features.inputs import Block, InputSpec, Layout
from everloop_inference.protocols import oip_proto
from everloop_inference.protocols.raw_block import MAX_SAID_BYTES, _plan, raw_block
from everloop_inference.protocols.tensors import block_from_plain, block_from_tensors, raw_values

LAYOUT = Layout(
    [
        InputSpec("age", FieldType.FLOAT, nullable=True),
        InputSpec("carrier", FieldType.STRING),
        InputSpec("distance", FieldType.FLOAT),
        InputSpec("departs", FieldType.TIMESTAMP),
        InputSpec("origin", FieldType.STRING, nullable=True),
    ]
)
DATATYPES = {
    "age": "FP32",
    "carrier": "BYTES",
    "distance": "FP32",
    "departs": "INT64",
    "origin": "BYTES",
    "id": "BYTES",
}
NUMPY = {"FP32": "<f4", "INT64": "<i8"}

numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)
texts = st.text(max_size=6)
rows = st.lists(
    st.fixed_dictionaries(
        {
            "age": st.one_of(numbers, st.just(math.nan)),
            "carrier": texts,
            "distance": numbers,
            "departs": st.integers(0, 2**40),
            "origin": texts,
            "id": texts,
        }
    ),
    min_size=1,
    max_size=5,
)


def asked(given: Sequence[dict[str, Any]], **datatypes: str) -> oip.ModelInferRequest:
    request = oip.ModelInferRequest()
    for name, datatype in (DATATYPES | datatypes).items():
        values = [row[name] for row in given]
        request.inputs.add(name=name, datatype=datatype, shape=[len(given), 1])
        request.raw_input_contents.append(
            raw_values(values if datatype == "BYTES" else np.array(values, NUMPY[datatype]))
        )
    return request


def same(one: tuple[Block, Sequence[str]] | None, other: tuple[Block, Sequence[str]]) -> None:
    assert one is not None
    for name in DATATYPES.keys() - {"id"}:
        columns = [LAYOUT.column(block, name) for block, _ in (one, other)]
        np.testing.assert_array_equal(columns[0], columns[1], strict=True)
    assert list(one[1]) == list(other[1])


@given(rows)
def test_raw_contents_are_the_block_that_they_are_tensor_by_tensor(
    given: list[dict[str, Any]],
) -> None:
    request = asked(given)
    long = block_from_tensors(oip_proto.tensors(request), LAYOUT, "id")
    same(raw_block(request, LAYOUT, "id"), long)


@given(rows)
def test_plain_columns_are_the_block_of_their_rows(given: list[dict[str, Any]]) -> None:
    plain: dict[str, list[Any]] = {name: [row[name] for row in given] for name in DATATYPES}
    plain["age"] = [None if math.isnan(value) else value for value in plain["age"]]
    long = block_from_tensors(oip_proto.tensors(asked(given)), LAYOUT, "id")
    same(block_from_plain(plain, LAYOUT, "id"), long)


def test_what_tensors_say_is_not_remembered_where_it_is_large() -> None:
    request = asked([ROW, ROW])
    request.inputs[0].contents.bytes_contents.append(bytes(MAX_SAID_BYTES))
    before = _plan.cache_info()
    assert raw_block(request, LAYOUT, "id") is None
    assert _plan.cache_info() == before


ROW = {"age": 1.0, "carrier": "UA", "distance": 2.0, "departs": 3, "origin": "EWR", "id": "x"}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda request: request.inputs.pop(),
        lambda request: (request.inputs.pop(0), request.raw_input_contents.pop(0)),
        lambda request: setattr(request.inputs[0], "name", "distance"),
        lambda request: setattr(request.inputs[0], "name", "other"),
        lambda request: setattr(request.inputs[0], "datatype", "FP64"),
        lambda request: request.inputs[0].shape.append(1),
        lambda request: request.inputs[0].shape.__setitem__(0, 3),
        lambda request: request.inputs[0].parameters["classification"].SetInParent(),
        lambda request: request.inputs[0].contents.SetInParent(),
        lambda request: request.raw_input_contents.__setitem__(0, b"1234"),
        lambda request: request.raw_input_contents.__setitem__(2, b"\0\0\xc0\x7f" * 2),
    ],
)
def test_what_needs_a_closer_look_gets_one(spoil: Any) -> None:
    request = asked([ROW, ROW])
    assert raw_block(request, LAYOUT, "id") is not None
    spoil(request)
    assert raw_block(request, LAYOUT, "id") is None
