"""Kinds, codes and statuses: complete, and one reason each."""

from __future__ import annotations

import pickle

import orjson
import pytest
from google.rpc import error_details_pb2

from everloop_runtime.errors import (
    DOMAIN,
    GRPC_CODES,
    HTTP_STATUS,
    EverloopError,
    Kind,
    not_json,
    rich_status,
    waiting_mends,
)


def test_every_kind_has_a_grpc_code_and_an_http_status_of_its_own():
    assert set(GRPC_CODES) == set(HTTP_STATUS) == set(Kind)
    assert len(set(GRPC_CODES.values())) == len(set(HTTP_STATUS.values())) == len(Kind)


@pytest.mark.parametrize("kind", Kind)
def test_a_status_holds_the_code_and_exactly_one_error_info(kind):
    status = rich_status(EverloopError(kind, "SOME_REASON", "what to do", field="x"))
    assert status.code == GRPC_CODES[kind].value[0]
    assert status.message == "what to do"
    (detail,) = status.details
    info = error_details_pb2.ErrorInfo()
    assert detail.Unpack(info)
    assert (info.reason, info.domain, dict(info.metadata)) == (
        "SOME_REASON",
        DOMAIN,
        {"field": "x"},
    )


def test_a_status_says_when_to_retry_where_that_is_known():
    status = rich_status(EverloopError(Kind.EXHAUSTED, "OVERLOADED", "full").after(0.25))
    info, delay = status.details
    assert info.Is(error_details_pb2.ErrorInfo.DESCRIPTOR)
    retry = error_details_pb2.RetryInfo()
    assert delay.Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == 250


def test_an_error_survives_pickling():
    error = EverloopError(Kind.NOT_FOUND, "MODEL_NOT_FOUND", "no such model", model="late").after(
        1.5
    )
    copy = pickle.loads(pickle.dumps(error))
    assert vars(copy) == vars(error)
    assert str(copy) == "no such model"


def test_waiting_mends_what_is_away_busy_or_behind_and_nothing_else():
    mended = {kind for kind in Kind if waiting_mends(EverloopError(kind, "WHY", "text"))}
    assert mended == {Kind.UNAVAILABLE, Kind.EXHAUSTED, Kind.DEADLINE}
    assert not waiting_mends(TimeoutError())


@pytest.mark.parametrize(
    ("text", "hinted"),
    [
        ('{"price": NaN}', True),
        ("[1, -Infinity]", True),
        ("[Infinity]", True),
        ('{"price": nope}', False),
        ('{"name": "NaN", ]', False),
    ],
)
def test_numbers_that_json_has_no_word_for_are_named(text: str, hinted: bool) -> None:
    with pytest.raises(orjson.JSONDecodeError) as caught:
        orjson.loads(text)
    told = not_json(caught.value)
    assert told.startswith(str(caught.value))
    assert ("send null" in told) == hinted
