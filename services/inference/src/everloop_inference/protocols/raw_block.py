"""Raw contents of a whole request to a block, without a look at each value or an array for each tensor.

Raw contents are columns, and so are a block's: those of one kind, one behind the other, are the block. What the tensors
say about themselves is the same from request to request, so that it is understood once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from everloop_contracts.pipeline import FieldType
from everloop_contracts.stubs.inference import grpc_service_pb2 as oip
from everloop_features.inputs import Block, Layout
from everloop_inference.protocols.tensors import texts_from_raw

__all__ = ["raw_block"]

_DATATYPES = {FieldType.FLOAT: "FP32", FieldType.STRING: "BYTES", FieldType.TIMESTAMP: "INT64"}


@dataclass(frozen=True, slots=True)
class _Plan:
    """Where the columns of a block are among the tensors of a request.

    Attributes:
        rows: of each tensor.
        numbers: positions of the tensors; likewise texts and times.
        required: how many of the numbers may not be null; they come first.
        ids: position of the tensor with record ids, if there is one.
    """

    rows: int
    numbers: tuple[int, ...]
    texts: tuple[int, ...]
    times: tuple[int, ...]
    required: int
    ids: int | None


MAX_SAID_BYTES: Final = 64 * 1024
"""What the tensors of a request may say about themselves to be remembered."""


def raw_block(
    request: oip.ModelInferRequest, layout: Layout, id_field: str
) -> tuple[Block, Sequence[str]] | None:
    """The rows of a request and their record ids (none if not given).

    Returns:
        None where a tensor is missing, or not of the very type that the model takes, or holds what needs a closer look.

    Raises:
        EverloopError: kind invalid: a tensor of texts does not hold what it says.
    """
    raws = request.raw_input_contents
    said = tuple([item.SerializeToString() for item in request.inputs])
    # What is remembered of it must stay small: typed contents are among what tensors say.
    if len(raws) != len(said) or sum(map(len, said)) > MAX_SAID_BYTES:
        return None
    plan = _plan(layout, id_field, said)
    if plan is None:
        return None
    rows = plan.rows
    numbers = [raws[place] for place in plan.numbers]
    times = [raws[place] for place in plan.times]
    if not set(map(len, numbers)) <= {4 * rows} or not set(map(len, times)) <= {8 * rows}:
        return None
    texts: list[str] = []
    for place in plan.texts:
        texts += texts_from_raw(request.inputs[place].name, rows, raws[place])
    held = np.empty(len(texts), dtype=object)
    held[:] = texts
    block = Block(
        held.reshape(len(plan.texts), rows),
        np.frombuffer(b"".join(numbers), "<f4").reshape(len(numbers), rows),
        np.frombuffer(b"".join(times), "<i8").reshape(len(times), rows),
    )
    if np.isnan(block.numbers[: plan.required]).any():
        return None
    ids = () if plan.ids is None else texts_from_raw(id_field, rows, raws[plan.ids])
    return block, ids


@lru_cache(maxsize=256)
def _plan(layout: Layout, id_field: str, said: tuple[bytes, ...]) -> _Plan | None:
    """Understands the tensors of a request; None where they are not what the model takes as it takes it."""
    items = [oip.ModelInferRequest.InferInputTensor.FromString(item) for item in said]
    places = {item.name: place for place, item in enumerate(items)}
    rows = items[0].shape[0] if items and items[0].shape else 0
    if rows < 1 or len(places) != len(items):
        return None
    if any(
        item.parameters or item.HasField("contents") or list(item.shape) not in ([rows], [rows, 1])
        for item in items
    ):
        return None
    ids = places.pop(id_field, None)
    if places.keys() != {spec.name for spec in layout.inputs} or (
        ids is not None and items[ids].datatype != "BYTES"
    ):
        return None
    types = {spec.name: _DATATYPES.get(spec.type) for spec in layout.inputs}
    if any(items[place].datatype != types[name] for name, place in places.items()):
        return None
    numbers, texts, times = layout.order
    nullable = {spec.name for spec in layout.inputs if spec.nullable}
    return _Plan(
        rows,
        tuple(places[name] for name in numbers),
        tuple(places[name] for name in texts),
        tuple(places[name] for name in times),
        sum(name not in nullable for name in numbers),
        ids,
    )
