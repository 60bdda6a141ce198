"""Events survive the way through Kafka's bytes, and nothing else is taken for one."""

from __future__ import annotations

import importlib
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace

from everloop_contracts.stubs.everloop.training.v1.events_pb2 import ModelTrained
from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.events import TOPICS, Event, decode, encode, new_event
from everloop_runtime.telemetry import configure, span

TYPE = "everloop.training.v1.ModelTrained"
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
times = st.datetimes(
    min_value=datetime(1970, 1, 1),
    max_value=datetime(2200, 1, 1),
    timezones=st.sampled_from([UTC, timezone(timedelta(hours=-5))]),
)


@given(
    st.builds(
        Event,
        id=texts.filter(bool),
        type=st.just(TYPE),
        source=texts,
        pipeline=texts,
        data=st.builds(
            ModelTrained,
            pipeline=texts,
            dataset_version=st.integers(0, 2**62),
            metrics=st.dictionaries(texts, st.floats(allow_nan=False), max_size=4),
        ),
        cause=texts,
        time=times,
        trace=st.fixed_dictionaries({}, optional={"traceparent": texts, "tracestate": texts}),
    )
)
def test_an_event_comes_back_as_it_went(event):
    key, value, headers = encode(event)
    assert key == event.pipeline.encode()
    assert decode(value, headers) == event
    assert dict(headers)["ce_specversion"] == b"1.0"


@pytest.mark.parametrize("name", sorted(TOPICS))
def test_every_event_type_has_a_message_and_a_topic(name):
    package, _, message = name.rpartition(".")
    module = importlib.import_module(f"everloop_contracts.stubs.{package}.events_pb2")
    event = new_event("test", "late", getattr(module, message)())
    _, value, headers = encode(event)
    assert decode(value, headers) == event
    assert event.topic == TOPICS[name]


def test_new_events_have_ids_of_their_own_unless_told():
    one, two = (new_event("test", "late", ModelTrained()) for _ in range(2))
    assert one.id != two.id
    assert new_event("test", "late", ModelTrained(), id="mine").id == "mine"


def test_an_event_carries_the_trace_it_was_made_in():
    configure("test")
    with span("outer"):
        here = trace.get_current_span().get_span_context()
        _, value, headers = encode(new_event("test", "late", ModelTrained()))
    with span("handler", decode(value, headers).trace):
        there = trace.get_current_span().get_span_context()
    assert there.trace_id == here.trace_id
    assert there.span_id != here.span_id


def good() -> tuple[bytes, dict[str, bytes]]:
    _, value, headers = encode(new_event("test", "late", ModelTrained(pipeline="late")))
    return value, dict(headers)


@pytest.mark.parametrize(
    "change",
    [
        {"ce_type": b"everloop.training.v1.Nonsense"},
        {"ce_type": b"os.system"},
        {"ce_time": b"yesterday"},
        {"ce_type": None},
        {"ce_id": None},
        {"ce_id": b""},
        {"ce_time": None},
    ],
)
def test_a_broken_envelope_is_malformed(change):
    value, headers = good()
    broken = [(key, item) for key, item in (headers | change).items() if item is not None]
    with pytest.raises(EverloopError) as caught:
        decode(value, broken)
    assert (caught.value.kind, caught.value.reason) == (Kind.INVALID, "MALFORMED_EVENT")


@pytest.mark.parametrize("value", [b"\xff\xff\xff", b'{"json": true}'])
def test_a_broken_message_is_malformed(value):
    _, headers = good()
    with pytest.raises(EverloopError) as caught:
        decode(value, list(headers.items()))
    assert caught.value.reason == "MALFORMED_EVENT"


@given(st.lists(st.tuples(texts, st.none() | st.binary(max_size=20)), max_size=5), st.binary())
def test_whatever_comes_it_is_an_event_or_malformed(headers, value):
    with pytest.raises(EverloopError):
        decode(value, headers)


def test_a_message_without_a_value_is_malformed():
    _, headers = good()
    with pytest.raises(EverloopError):
        decode(None, list(headers.items()))  # type: ignore[arg-type]  # a tombstone
