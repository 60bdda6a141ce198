"""PredictStream: every request is answered once, what is wrong with one does not end it, and nothing piles up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.protobuf.struct_pb2 import Struct

from everloop_contracts.stubs.everloop.inference.v1 import inference_pb2 as native
from everloop_contracts.stubs.everloop.inference.v1 import inference_pb2_grpc as native_grpc
from everloop_features.inputs import feeds_from_rows
from everloop_inference.batching import Batcher, Capacity
from everloop_inference.domain import Answer
from everloop_inference.fakes import INPUTS, ROW, Caller
from everloop_inference.servicer import NativeServicer


def message(name: str, model: str = "flights", **changes: Any) -> native.PredictStreamRequest:
    row = Struct()
    row.update({**ROW, **changes})
    return native.PredictStreamRequest(
        id=name, request=native.PredictRequest(model=model, rows=[row])
    )


@pytest.fixture
def stub(world: Any) -> Iterator[Any]:
    world.publish(1)
    world.replica()
    with grpc.insecure_channel(world.settings.predict_grpc_address) as channel:
        yield native_grpc.InferenceServiceStub(channel)


def test_every_request_gets_its_own_answer_and_errors_end_nothing(world: Any, stub: Any) -> None:
    odd: dict[int, dict[str, Any]] = {
        3: {"model": "ghost"},
        50: {"distance": "far"},
        51: {"stops": 0.5},
        400: {"carrier": 7},
    }
    asked = []
    for number in range(1000):
        changes: dict[str, Any] = {"distance": float(number), **odd.get(number, {})}
        asked.append(message(f"r-{number}", **changes))
    # An id is the caller's affair: it may come twice.
    asked.append(message("r-5", distance=5.0))
    answers = list(stub.PredictStream(iter(asked), timeout=60))
    assert sorted(answer.id for answer in answers) == sorted(item.id for item in asked)
    model = world.replicas[0].models.get("flights")
    rows = [{**ROW, "distance": float(number)} for number in range(1000)]
    expected = model.run(feeds_from_rows(rows, INPUTS))[:, 1]
    reasons = {}
    for answer in answers:
        number = int(answer.id.removeprefix("r-"))
        if answer.HasField("error"):
            reasons[number] = answer.error.code, answer.error.reason
        else:
            (prediction,) = answer.response.predictions
            assert prediction.score == pytest.approx(expected[number], abs=1e-6)
    invalid = grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert reasons == {
        3: (grpc.StatusCode.NOT_FOUND.value[0], "MODEL_NOT_FOUND"),
        50: (invalid, "WRONG_TYPE"),
        51: (invalid, "WRONG_TYPE"),
        400: (invalid, "WRONG_TYPE"),
    }
    (wrong,) = (answer.error for answer in answers if answer.id == "r-50")
    assert (wrong.metadata["field"], wrong.metadata["row"]) == ("distance", "0")


def test_a_conversation_and_an_empty_stream(stub: Any) -> None:
    assert list(stub.PredictStream(iter(()), timeout=10)) == []
    heard: list[str] = []
    answered = threading.Semaphore(0)

    def talk() -> Iterator[native.PredictStreamRequest]:
        for number in range(20):
            yield message(str(number))
            assert answered.acquire(timeout=10)  # the next question follows from the answer

    for answer in stub.PredictStream(talk(), timeout=30):
        heard.append(answer.id)
        answered.release()
    assert heard == [str(number) for number in range(20)]


class Gate:
    """A predictor whose answers come when they are let go."""

    def __init__(self, stream: int) -> None:
        self.capacity = Capacity(stream=stream)
        self.batcher = Batcher(lambda *_: None, self.capacity, None)
        self.waiting: list[asyncio.Future[Answer]] = []

    def rows(self, *_: object) -> asyncio.Future[Answer]:
        self.waiting.append(asyncio.get_running_loop().create_future())
        return self.waiting[-1]


def test_streams_wait_where_calls_would_be_refused(world: Any) -> None:
    world.settings = world.settings.model_copy(
        update={"model_queue_requests": 16, "queue_requests": 16}
    )
    world.publish(1)
    world.replica()
    asked = [message(str(number)) for number in range(200)]

    def ask(stub: Any) -> list[str]:
        answers = list(stub.PredictStream(iter(asked), timeout=60))
        assert not [answer.error for answer in answers if answer.HasField("error")]
        return sorted(answer.id for answer in answers)

    with (
        grpc.insecure_channel(world.settings.predict_grpc_address) as channel,
        ThreadPoolExecutor(8) as callers,
    ):
        stub = native_grpc.InferenceServiceStub(channel)
        wanted = sorted(item.id for item in asked)
        assert all(got == wanted for got in callers.map(ask, [stub] * 8))


def test_a_stream_is_read_only_while_few_requests_wait_and_a_cancelled_one_leaves_nothing() -> None:
    async def streaming() -> None:
        gate = Gate(stream=3)
        servicer = NativeServicer(gate)  # type: ignore[arg-type]
        read: list[int] = []

        async def requests() -> AsyncIterator[native.PredictStreamRequest]:
            for number in range(10):
                read.append(number)
                yield message(str(number))

        answers: Any = servicer.PredictStream(requests(), Caller())  # type: ignore[arg-type]
        first = asyncio.ensure_future(anext(answers))
        for _ in range(20):
            await asyncio.sleep(0)
        # Three are in flight, and the one that was read waits for its turn.
        assert (len(gate.waiting), len(read)) == (3, 4)
        gate.waiting[1].set_exception(RuntimeError("broken"))
        answer = await first
        assert (answer.id, answer.error.reason) == ("1", "INTERNAL")
        assert "broken" not in str(answer)
        second = asyncio.ensure_future(anext(answers))
        for _ in range(20):
            await asyncio.sleep(0)
        assert (len(gate.waiting), len(read)) == (4, 5)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        await answers.aclose()
        assert [waiting.cancelled() for waiting in gate.waiting] == [True, False, True, True]
        assert len(read) == 5

    asyncio.run(streaming())


def test_a_caller_whose_stream_breaks_ends_it_with_an_error() -> None:
    async def streaming() -> None:
        servicer = NativeServicer(Gate(stream=3))  # type: ignore[arg-type]

        async def requests() -> AsyncIterator[native.PredictStreamRequest]:
            yield message("first")
            raise ConnectionError("the wire is cut")

        with pytest.raises(ConnectionError):
            await anext(servicer.PredictStream(requests(), Caller()))  # type: ignore[arg-type]

    asyncio.run(streaming())
