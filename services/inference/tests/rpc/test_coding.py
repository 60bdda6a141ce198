"""Messages, metadata and statuses on the wire and back."""

from __future__ import annotations

import gzip
import itertools
import tracemalloc
from urllib.parse import unquote

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from everloop_inference.rpc import Abort
from everloop_inference.rpc.messages import Inbox, frame, unpack
from everloop_inference.rpc.metadata import decode, encode, timeout
from everloop_inference.rpc.status import trailers

MIB = 1024 * 1024
NAMES = st.from_regex(r"[0-9a-z_.-]{1,20}", fullmatch=True).filter(
    lambda name: (
        not name.startswith("grpc-") and name not in {"te", "content-type", "content-length"}
    )
)
TEXTS = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E)).map(str.strip)


@given(
    messages=st.lists(st.binary(max_size=40), max_size=8),
    cuts=st.lists(st.integers(0, 400), max_size=12),
)
def test_messages_are_whole_wherever_they_are_cut(messages: list[bytes], cuts: list[int]) -> None:
    wire = b"".join(frame(message) for message in messages)
    places = sorted({min(cut, len(wire)) for cut in cuts} | {0, len(wire)})
    inbox = Inbox(40)
    found = [
        pair for begin, end in itertools.pairwise(places) for pair in inbox.feed(wire[begin:end])
    ]
    assert found == [(False, message) for message in messages]
    assert len(inbox) == 0


@given(message=st.binary(max_size=2000), encoding=st.sampled_from([b"gzip", b"deflate"]))
def test_compression_is_undone(message: bytes, encoding: bytes) -> None:
    ((packed, content),) = Inbox(4000).feed(frame(message, encoding))
    assert packed
    assert unpack(content, encoding, len(message)) == message


def test_a_bomb_is_not_unpacked() -> None:
    bomb = gzip.compress(bytes(200 * MIB), mtime=0)
    tracemalloc.start()
    try:
        with pytest.raises(Abort) as caught:
            unpack(bomb, b"gzip", MIB)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert peak < 8 * MIB


@given(
    pairs=st.lists(
        st.tuples(NAMES.filter(lambda name: not name.endswith("-bin")), TEXTS)
        | st.tuples(NAMES.map(lambda name: f"{name}-bin"), st.binary(max_size=50))
    )
)
def test_metadata_come_back(pairs: list[tuple[str, str | bytes]]) -> None:
    assert list(decode(encode(pairs))) == pairs


@pytest.mark.parametrize(
    "pair",
    [
        ("Upper", "x"),
        ("", "x"),
        ("with space", "x"),
        ("grpc-status", "0"),
        ("x", "ü"),
        ("x", "a\nb"),
    ],
)
def test_metadata_that_gRPC_does_not_know_are_refused(pair: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="metadata"):
        encode([pair])


def test_binary_metadata_may_be_joined_or_broken() -> None:
    assert decode([(b"a-bin", b"AAE,AAI=")]) == (("a-bin", b"\0\1"), ("a-bin", b"\0\2"))
    assert decode([(b"a-bin", b"A"), (b"b", b"kept")]) == (("b", "kept"),)


@given(details=st.text(st.characters(exclude_categories=["Cs"]), max_size=300))
def test_status_messages_come_back(details: str) -> None:
    fields = dict(trailers(grpc.StatusCode.NOT_FOUND, details, ()))
    assert fields[b"grpc-status"] == b"5"
    assert unquote(fields.get(b"grpc-message", b"").decode("ascii")) == details


@given(number=st.integers(0, 99_999_999), unit=st.sampled_from("HMSmun"))
def test_timeouts_are_read(number: int, unit: str) -> None:
    seconds = timeout(f"{number}{unit}".encode())
    assert seconds is not None
    per = {"H": 3600, "M": 60, "S": 1, "m": 1e-3, "u": 1e-6, "n": 1e-9}[unit]
    assert seconds == pytest.approx(number * per)


@pytest.mark.parametrize("text", [b"", b"5", b"S", b"-1S", b"1.5S", b"1s", b"123456789S", b"1S "])
def test_other_timeouts_are_not(text: bytes) -> None:
    assert timeout(text) is None
