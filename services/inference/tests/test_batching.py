"""Requests share batches, and nothing else: not their answers, not their failures, not their deadlines."""

from __future__ import annotations

import asyncio
import dataclasses
import doctest
import itertools
import math
import random
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import orjson
import pytest
from google.protobuf.struct_pb2 import Struct
from google.rpc import error_details_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from everloop_contracts.stubs.everloop.inference.v1 import inference_pb2 as native
from everloop_contracts.stubs.inference import grpc_service_pb2 as oip
from everloop_features.inputs import Block, Feeds
from everloop_inference import cost
from everloop_inference.adapters.engines import LocalEngines
from everloop_inference.batching import Capacity
from everloop_inference.cost import Cost
from everloop_inference.domain import Answer, Call, EngineKind, ServedModel, ServingPolicy, Wanted
from everloop_inference.fakes import (
    ROW,
    Caller,
    MemoryArtifacts,
    request,
    sample_artifact,
    told,
)
from everloop_inference.http import deadlines
from everloop_inference.http.app import HttpApp
from everloop_inference.metrics import DROPPED
from everloop_inference.models.load import Loader
from everloop_inference.models.swap import Models
from everloop_inference.predict import Predictor
from everloop_inference.protocols.tensors import DTYPES, raw_values
from everloop_inference.rpc import Abort
from everloop_inference.servicer import NativeServicer, OipServicer
from everloop_runtime.errors import EverloopError, Kind

TASKS = {"flights": "binary", "kind": "multiclass", "delay": "regression"}
MANY = Capacity(rows=100_000, requests=100_000, model_rows=100_000, model_requests=100_000)


class Spy:
    """An engine that notes what it runs, and fails where a row says so.

    Attributes:
        kind: slow or not.
        runs: the distances of the rows of each run.
    """

    def __init__(self, inner: Any, kind: EngineKind = EngineKind.ONNX) -> None:
        self.kind = kind
        self.runs: list[list[float]] = []
        self.gate: threading.Event | None = None
        self._inner = inner

    def run(self, feeds: Feeds) -> npt.NDArray[np.float32]:
        distances = feeds["distance"][:, 0].tolist()
        self.runs.append(distances)
        if self.gate:
            assert self.gate.wait(10)
        if -1.0 in distances:
            raise RuntimeError("the runtime cannot take this row")
        answer: npt.NDArray[np.float32] = self._inner.run(feeds)
        return answer


class Ledger:
    """A log that remembers."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.records: list[str] = []
        self.latencies: list[int] = []

    def offer(
        self,
        answer: Answer,
        block: Any,
        record_ids: Sequence[str],
        latency_micros: Sequence[int],
        size: int,
    ) -> None:
        self.ids += answer.prediction_ids
        self.records += record_ids
        self.latencies += latency_micros


class Core:
    """A predictor with models that can be watched."""

    def __init__(
        self,
        folder: Path,
        capacity: Capacity = MANY,
        kind: EngineKind = EngineKind.ONNX,
        **policy: Any,
    ) -> None:
        artifacts = MemoryArtifacts()
        loader = Loader(artifacts, LocalEngines(), folder / "cache")
        self.models = Models()
        self.spies: dict[str, Spy] = {}
        for name, task in TASKS.items():
            artifact = sample_artifact(0.3, task)
            artifacts.runs[name] = artifact
            rules = ServingPolicy(id_field="flight_id", **policy)
            model = loader.load(Wanted(name, 1, name, artifact.sha256), rules)
            self.spies[name] = Spy(model.engine, kind)
            # A noisy machine must not make a test's batches small.
            self.models.swap(
                dataclasses.replace(model, engine=self.spies[name], cost=Cost(1e-6, 1e-9))
            )
        self.log = Ledger()
        self.pool = ThreadPoolExecutor(2)
        self.predictor = Predictor(self.models, self.log, "epoch", capacity, self.pool)

    def model(self, name: str = "flights") -> ServedModel:
        return self.models.get(name)

    def ask(
        self,
        distance: float,
        name: str = "flights",
        rows: int = 1,
        deadline: float = math.inf,
        size: int = 10,
    ) -> asyncio.Future[Answer]:
        given = [{**ROW, "distance": distance, "flight_id": f"{distance}"}] * rows
        return self.predictor.rows(name, given, Call(time.perf_counter(), size, deadline))


@pytest.fixture
def core(tmp_path: Path) -> Callable[..., Core]:
    def make(**options: Any) -> Core:
        return Core(tmp_path, **options)

    return make


def dropped(reason: str, name: str = "flights") -> float:
    return DROPPED.labels(name, reason)._value.get()  # type: ignore[no-any-return]


# The doors: each asks for one row and returns its scores, or the reason it was refused for.

Door = Callable[["Doors", str, dict[str, Any]], Awaitable[list[float] | str]]


class Doors:
    def __init__(self, core: Core) -> None:
        self.http = HttpApp(core.predictor, "mark", 1 << 20)
        self.native: Any = NativeServicer(core.predictor)
        self.oip: Any = OipServicer(core.predictor, lambda: True)

    async def over_http(self, name: str, row: dict[str, Any]) -> list[float] | str:
        body = orjson.dumps({"rows": [row]})
        status, _, content = await request(self.http, "POST", f"/v1/models/{name}:predict", body)
        answer = orjson.loads(content)
        if status != 200:
            return str(answer["reason"])
        (prediction,) = answer["predictions"]
        return prediction["probabilities"] or [prediction["score"]]

    async def over_oip_http(self, name: str, row: dict[str, Any]) -> list[float] | str:
        body = orjson.dumps({"inputs": [{**item, "data": [row[item["name"]]]} for item in TENSORS]})
        status, _, content = await request(self.http, "POST", f"/v2/models/{name}/infer", body)
        answer = orjson.loads(content)
        return answer["outputs"][0]["data"] if status == 200 else str(answer["reason"])

    async def over_binary_http(self, name: str, row: dict[str, Any]) -> list[float] | str:
        raws = [raw(item["datatype"], row[item["name"]]) for item in TENSORS]
        head = orjson.dumps(
            {
                "parameters": {"binary_data_output": True},
                "inputs": [
                    {**item, "parameters": {"binary_data_size": len(content)}}
                    for item, content in zip(TENSORS, raws, strict=True)
                ],
            }
        )
        length = {"inference_header_content_length": str(len(head))}
        status, headers, content = await request(
            self.http, "POST", f"/v2/models/{name}/infer", b"".join((head, *raws)), **length
        )
        if status != 200:
            return str(orjson.loads(content)["reason"])
        end = int(headers["inference-header-content-length"])
        output = orjson.loads(content[:end])["outputs"][0]
        size = output["parameters"]["binary_data_size"]
        found: list[float] = np.frombuffer(content[end : end + size], np.float32).tolist()
        return found

    async def over_grpc(self, name: str, row: dict[str, Any]) -> list[float] | str:
        given = Struct()
        given.update(row)
        try:
            answer = await self.native.Predict(
                native.PredictRequest(model=name, rows=[given]), Caller()
            )
        except Abort as refusal:
            return reason(refusal)
        (prediction,) = answer.predictions
        return list(prediction.probabilities) or [prediction.score]

    async def over_oip_grpc(self, name: str, row: dict[str, Any]) -> list[float] | str:
        asked = oip.ModelInferRequest(model_name=name)
        for item in TENSORS:
            asked.inputs.add(name=item["name"], datatype=item["datatype"], shape=[1])
            asked.raw_input_contents.append(raw(item["datatype"], row[item["name"]]))
        try:
            answer = await self.oip.ModelInfer(asked, Caller())
        except Abort as refusal:
            return reason(refusal)
        found: list[float] = np.frombuffer(answer.raw_output_contents[0], np.float32).tolist()
        return found


TENSORS: list[dict[str, Any]] = [
    {"name": "carrier", "datatype": "BYTES", "shape": [1]},
    {"name": "distance", "datatype": "FP64", "shape": [1]},
    {"name": "stops", "datatype": "FP32", "shape": [1]},
    {"name": "departs", "datatype": "BYTES", "shape": [1]},
]


def raw(datatype: str, value: Any) -> bytes:
    if datatype == "BYTES":
        return raw_values([value])
    return np.array(value, DTYPES[datatype]).tobytes()


def reason(refusal: Abort) -> str:
    info = error_details_pb2.ErrorInfo()
    assert told(refusal).details[0].Unpack(info)
    return str(info.reason)


DOORS: list[Any] = [
    Doors.over_http,
    Doors.over_oip_http,
    Doors.over_binary_http,
    Doors.over_grpc,
    Doors.over_oip_grpc,
]


@pytest.mark.slow
@settings(max_examples=1, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1 << 32))
def test_thousands_of_concurrent_rows_each_get_their_own_answer(
    core: Callable[..., Core], seed: int
) -> None:
    it = core()
    chance = random.Random(seed)
    asked: list[tuple[str, dict[str, Any], Any, str]] = []
    for number in range(4_000):
        row = {**ROW, "distance": number / 2, "age": None, "weekend": None, "stops": number % 7}
        # One in fifty breaks the signature, one in fifty breaks the runtime, one in fifty goes away.
        fate = chance.choices(["good", "bad", "poison", "gone"], [94, 2, 2, 2])[0]
        row |= {"bad": {"stops": 0.5}, "poison": {"distance": -1.0}}.get(fate, {})
        asked.append((chance.choice(list(TASKS)), row, chance.choice(DOORS), fate))

    async def everybody() -> list[Any]:
        doors = Doors(it)
        calls = [asyncio.ensure_future(door(doors, name, row)) for name, row, door, _ in asked]
        await asyncio.sleep(0)
        for call, (_, _, _, fate) in zip(calls, asked, strict=True):
            if fate == "gone":
                call.cancel()
        return await asyncio.gather(*calls, return_exceptions=True)

    answers = asyncio.run(everybody())
    expected: dict[tuple[str, float], Any] = {}
    for name in TASKS:
        rows = [row for of, row, _, fate in asked if of == name and fate in ("good", "gone")]
        layout = it.model(name).layout
        scores = it.spies[name]._inner.run(layout.feeds(layout.from_rows(rows)))
        expected |= {
            (name, row["distance"]): answer for row, answer in zip(rows, scores, strict=True)
        }
    for answer, (name, row, door, fate) in zip(answers, asked, strict=True):
        where = (name, row["distance"], door.__name__)
        if fate == "good":
            np.testing.assert_allclose(
                answer, expected[name, row["distance"]], atol=1e-6, err_msg=str(where)
            )
        elif fate == "gone":
            assert isinstance(answer, asyncio.CancelledError), where
        else:
            assert answer == {"bad": "WRONG_TYPE", "poison": "INTERNAL"}[fate], where
    good = sum(fate == "good" for *_, fate in asked)
    assert len(set(it.log.ids)) == len(it.log.ids) == good
    assert max(len(run) for spy in it.spies.values() for run in spy.runs) > 100


def test_what_comes_in_one_turn_runs_as_one_batch_and_a_lone_row_at_once(
    core: Callable[..., Core],
) -> None:
    it = core()

    async def asking() -> None:
        answers = await asyncio.gather(*(it.ask(float(number)) for number in range(50)))
        assert it.spies["flights"].runs == [[float(number) for number in range(50)]]
        assert [answer.prediction_ids for answer in answers] == [
            [f"epoch-{number:x}"] for number in range(50)
        ]
        alone = it.ask(50.0)
        await asyncio.sleep(0)
        assert alone.done()

    asyncio.run(asking())
    assert it.log.records == [f"{number / 1}" for number in range(51)]
    assert all(0 <= micros < 10_000_000 for micros in it.log.latencies)


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=40), limit=st.integers(1, 64))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_requests_of_any_size_get_their_own_rows_back(
    core: Callable[..., Core], sizes: list[int], limit: int
) -> None:
    it = core(batch_rows=limit)
    numbers = itertools.count()
    asked = [
        [{**ROW, "distance": float(next(numbers)), "flight_id": str(size)} for _ in range(size)]
        for size in sizes
    ]

    async def asking() -> list[Answer]:
        call = Call(time.perf_counter(), 1)
        return await asyncio.gather(*(it.predictor.rows("flights", rows, call) for rows in asked))

    layout = it.model().layout
    for rows, answer in zip(asked, asyncio.run(asking()), strict=True):
        expected = it.spies["flights"]._inner.run(layout.feeds(layout.from_rows(rows)))
        np.testing.assert_allclose(answer.probabilities, expected, atol=1e-6)
        np.testing.assert_allclose(answer.scores, expected[:, 1], atol=1e-6)
        assert len(answer.labels) == len(answer.prediction_ids) == len(rows)
    assert it.log.records == [row["flight_id"] for rows in asked for row in rows]
    assert all(len(run) <= max(limit, *sizes) for run in it.spies["flights"].runs)


def test_the_latency_target_and_the_row_limit_bound_a_batch(core: Callable[..., Core]) -> None:
    async def asking(it: Core, count: int) -> list[int]:
        await asyncio.gather(*(it.ask(float(number), rows=2) for number in range(count)))
        return [len(run) for run in it.spies["flights"].runs]

    # Ten rows are expected to add exactly as much time to a run as they may.
    it = core(batch_seconds=1e-3)
    it.model().cost.fixed, it.model().cost.row = 1e-4, 1e-4
    first, *_ = asyncio.run(asking(it, 20))
    assert first == 10
    assert asyncio.run(asking(core(batch_rows=6), 9)) == [6, 6, 6]


def test_a_run_that_is_slow_by_itself_is_shared_all_the_more(core: Callable[..., Core]) -> None:
    it = core(kind=EngineKind.MLFLOW, batch_seconds=1e-3)
    it.model().cost.fixed, it.model().cost.row = 1.0, 1e-5

    async def asking() -> None:
        await asyncio.gather(*(it.ask(float(number)) for number in range(150)))

    asyncio.run(asking())
    assert len(it.spies["flights"].runs[0]) == 100


def test_the_models_take_turns(core: Callable[..., Core]) -> None:
    it = core(batch_rows=10)
    order: list[str] = []

    async def asking() -> None:
        for name in TASKS:
            for number in range(30):
                answer = it.ask(number, name)
                answer.add_done_callback(lambda answer: order.append(answer.result().model.name))
        while it.predictor.batcher.waiting:
            await asyncio.sleep(0)
        await asyncio.sleep(0)

    asyncio.run(asking())
    assert order == [name for _ in range(3) for name in TASKS for _ in range(10)]


def test_what_does_not_fit_is_refused_at_once_and_told_when_to_come_back(
    core: Callable[..., Core],
) -> None:
    it = core(capacity=Capacity(rows=20, requests=10, model_rows=8, model_requests=4))
    it.model().cost.row = 0.05

    async def asking() -> None:
        before = dropped("overloaded")
        taken = [it.ask(1.0, rows=2) for _ in range(4)]
        for rows in (1, 100):
            with pytest.raises(EverloopError) as caught:
                it.ask(2.0, rows=rows)
            assert (caught.value.kind, caught.value.reason) == (Kind.EXHAUSTED, "OVERLOADED")
            assert caught.value.retry_after == pytest.approx(0.4, abs=0.01)
        # Another model has a queue of its own, until the replica's is full.
        taken += [it.ask(3.0, "delay", rows=2), it.ask(3.0, "kind", rows=8)]
        with pytest.raises(EverloopError):
            it.ask(4.0, "delay", rows=3)
        taken.append(it.ask(4.0, "delay", rows=2))
        assert it.predictor.batcher.waiting == 7
        answers = await asyncio.gather(*taken)
        assert [len(answer.scores) for answer in answers] == [2, 2, 2, 2, 2, 8, 2]
        assert dropped("overloaded") == before + 2
        # Whatever its size, one request fits into an empty queue.
        assert len((await it.ask(5.0, rows=100)).scores) == 100

    asyncio.run(asking())


def test_few_rows_may_still_be_too_many_bytes(core: Callable[..., Core]) -> None:
    it = core(capacity=Capacity(size=100, model_size=60))

    async def asking() -> None:
        for _ in range(2):  # what has run makes room
            taken = [it.ask(1.0, size=30), it.ask(1.0, size=30), it.ask(2.0, "delay", size=30)]
            for name, size in (("flights", 1), ("kind", 11)):
                with pytest.raises(EverloopError) as caught:
                    it.ask(3.0, name, size=size)
                assert (caught.value.kind, caught.value.reason) == (Kind.EXHAUSTED, "OVERLOADED")
            taken.append(it.ask(3.0, "kind", size=10))
            assert [len(answer.scores) for answer in await asyncio.gather(*taken)] == [1] * 4
        # Whatever its size, one request fits into an empty queue.
        assert len((await it.ask(4.0, size=1000)).scores) == 1

    asyncio.run(asking())


def test_the_doors_say_that_it_is_too_much_and_for_how_long(core: Callable[..., Core]) -> None:
    it = core(capacity=Capacity(rows=2, requests=1, model_rows=2, model_requests=1))
    it.model().cost.row = 1.25

    async def asking() -> None:
        doors = Doors(it)
        waiting = it.ask(1.0, rows=1)
        body = orjson.dumps({"rows": [ROW]})
        status, headers, content = await request(
            doors.http, "POST", "/v1/models/flights:predict", body
        )
        assert (status, orjson.loads(content)["reason"]) == (429, "OVERLOADED")
        assert headers["retry-after"] == "2"
        await waiting
        waiting = it.ask(1.0, rows=1)
        row = Struct()
        row.update(ROW)
        with pytest.raises(Abort) as refusal:
            await doors.native.Predict(native.PredictRequest(model="flights", rows=[row]), Caller())
        assert refusal.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        delay = error_details_pb2.RetryInfo()
        assert told(refusal.value).details[1].Unpack(delay)
        assert 1 < delay.retry_delay.ToTimedelta().total_seconds() < 2
        await waiting

    asyncio.run(asking())


def test_what_nobody_waits_for_does_not_run(core: Callable[..., Core]) -> None:
    it = core()

    async def asking() -> None:
        late, gone = dropped("deadline"), dropped("gone")
        calls = [it.ask(1.0), it.ask(2.0, deadline=time.perf_counter()), it.ask(3.0), it.ask(4.0)]
        calls[2].cancel()
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert it.spies["flights"].runs == [[1.0, 4.0]]
        assert isinstance(answers[1], EverloopError)
        assert (answers[1].kind, answers[1].reason) == (Kind.DEADLINE, "DEADLINE_EXCEEDED")
        assert (dropped("deadline"), dropped("gone")) == (late + 1, gone + 1)

    asyncio.run(asking())


def test_both_doors_honour_a_deadline(core: Callable[..., Core]) -> None:
    it = core()

    async def asking() -> None:
        doors = Doors(it)
        body = orjson.dumps({"rows": [ROW]})
        path = "/v1/models/flights:predict"
        for timeout, found in (("1n", 504), ("10S", 200), ("soon", 422)):
            status, _, _ = await request(doors.http, "POST", path, body, grpc_timeout=timeout)
            assert status == found, timeout
        row = Struct()
        row.update(ROW)
        asked = native.PredictRequest(model="flights", rows=[row])
        with pytest.raises(Abort) as refusal:
            await doors.native.Predict(asked, Caller(seconds=0.0))
        assert reason(refusal.value) == "DEADLINE_EXCEEDED"
        assert len(it.spies["flights"].runs) == 1

    asyncio.run(asking())


def test_only_the_request_that_breaks_the_runtime_fails(core: Callable[..., Core]) -> None:
    it = core()

    async def asking() -> list[Any]:
        calls = [it.ask(distance) for distance in (1.0, -1.0, 3.0)]
        return await asyncio.gather(*calls, return_exceptions=True)

    first, poison, last = asyncio.run(asking())
    assert isinstance(poison, RuntimeError)
    assert (len(first.scores), len(last.scores)) == (1, 1)
    assert it.spies["flights"].runs == [[1.0, -1.0, 3.0], [1.0], [-1.0, 3.0], [-1.0], [3.0]]
    assert len(it.log.ids) == 2


def test_an_output_that_is_no_answer_fails_its_callers_and_nothing_else(
    core: Callable[..., Core], monkeypatch: pytest.MonkeyPatch
) -> None:
    it = core()
    monkeypatch.setattr(it.spies["flights"], "run", lambda _: np.zeros((2, 0), np.float32))

    async def asking() -> None:
        calls = [it.ask(1.0), it.ask(2.0), it.ask(3.0, "delay")]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(answer) for answer in answers] == [IndexError, IndexError, Answer]

    asyncio.run(asking())


@pytest.mark.parametrize("why", ["engine", "size"])
def test_a_slow_run_leaves_the_loop_to_others(core: Callable[..., Core], why: str) -> None:
    it = core(kind=EngineKind.MLFLOW) if why == "engine" else core()
    if why == "engine":
        it.spies["delay"].kind = EngineKind.ONNX
    else:
        it.model().cost.row = 1.0
    slow = it.spies["flights"]
    slow.gate = threading.Event()

    async def asking() -> None:
        first = it.ask(1.0)
        while not slow.runs:
            await asyncio.sleep(0)
        second, third = it.ask(2.0), it.ask(3.0)
        assert len((await it.ask(9.0, "delay")).scores) == 1
        assert not first.done()
        assert it.predictor.batcher.crowded
        assert not it.predictor.batcher.busy
        assert slow.gate is not None
        slow.gate.set()
        await asyncio.gather(first, second, third)
        assert not it.predictor.batcher.crowded

    asyncio.run(asking())
    assert list(itertools.chain(*slow.runs)) == [1.0, 2.0, 3.0]
    assert slow.runs[0] == [1.0]


def test_a_caller_who_hangs_up_in_a_crowd_is_dropped(core: Callable[..., Core]) -> None:
    it = core(kind=EngineKind.MLFLOW)
    slow = it.spies["flights"]
    slow.gate = threading.Event()

    async def asking() -> None:
        gone = dropped("gone")
        doors = Doors(it)
        first = it.ask(1.0)
        while not slow.runs:
            await asyncio.sleep(0)
        body = orjson.dumps({"rows": [{**ROW, "distance": 2.0}]})
        messages: list[dict[str, Any]] = [
            {"type": "http.disconnect"},
            {"type": "http.request", "body": body},
        ]

        async def receive() -> dict[str, Any]:
            return messages.pop()

        async def send(_: object) -> None:
            raise AssertionError("nobody is there")

        scope = {"method": "POST", "path": "/v1/models/flights:predict", "headers": []}
        await doors.http(scope, receive, send)
        assert slow.gate is not None
        slow.gate.set()
        await first
        await it.ask(3.0)
        assert dropped("gone") == gone + 1

    asyncio.run(asking())
    assert slow.runs == [[1.0], [3.0]]


@given(fixed=st.floats(1e-5, 1e-2), row=st.floats(1e-7, 1e-3))
def test_the_cost_of_runs_is_learned_from_runs(fixed: float, row: float) -> None:
    learning = Cost(fixed=1e-4, row=1e-5)
    chance = random.Random(1)
    for _ in range(3000):
        rows = chance.choice([1, 2, 8, 64, 512])
        learning.learn(rows, fixed + rows * row)
    for rows in (1, 8, 64, 512):
        assert learning.seconds(rows) == pytest.approx(fixed + rows * row, rel=0.25)


def test_one_odd_run_changes_little() -> None:
    learning = Cost(fixed=1e-4, row=1e-6)
    learning.learn(1, 10.0)
    assert learning.seconds(1) < 1.3e-4


def test_the_examples_hold() -> None:
    for module in (cost, deadlines):
        assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("value", [b"", b"1", b"S", b"-1S", b"1.5S", b"123456789S", b"1h"])
def test_what_is_no_timeout_is_refused(value: bytes) -> None:
    with pytest.raises(EverloopError):
        deadlines.seconds(value)


def test_units_of_timeouts() -> None:
    assert [deadlines.seconds(b"2" + unit) for unit in (b"H", b"M", b"S", b"m", b"u", b"n")] == [
        7200.0,
        120.0,
        2.0,
        0.002,
        2e-6,
        2e-9,
    ]


def raising(spy: Spy, error: BaseException) -> None:
    """Lets an engine fail once, in whatever way."""
    run = spy.run

    def once(feeds: Feeds) -> Any:
        spy.run = run  # type: ignore[method-assign]
        raise error

    spy.run = once  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (EngineKind.ONNX, StopIteration("no more")),
        (EngineKind.MLFLOW, StopIteration("no more")),
        (EngineKind.MLFLOW, SystemExit(1)),
        (EngineKind.MLFLOW, asyncio.CancelledError()),
    ],
)
def test_whatever_an_engine_raises_its_caller_is_told_and_the_next_is_answered(
    core: Callable[..., Core], kind: EngineKind, error: BaseException
) -> None:
    it = core(kind=kind)
    raising(it.spies["flights"], error)

    async def asking() -> None:
        async with asyncio.timeout(10):
            with pytest.raises(RuntimeError, match=type(error).__name__):
                await it.ask(1.0)
            assert len((await it.ask(2.0)).scores) == 1
        assert it.predictor.batcher.waiting == 0
        assert not it.predictor.batcher.crowded

    asyncio.run(asking())


def test_when_the_slow_threads_have_ended_callers_are_told(core: Callable[..., Core]) -> None:
    it = core(kind=EngineKind.MLFLOW)
    it.pool.shutdown()

    async def asking() -> None:
        async with asyncio.timeout(10):
            for _ in range(2):
                with pytest.raises(RuntimeError, match="shutdown"):
                    await it.ask(1.0)
        assert not it.predictor.batcher.crowded

    asyncio.run(asking())


@pytest.mark.parametrize("kind", EngineKind)
def test_rows_that_cannot_be_joined_run_by_themselves(
    core: Callable[..., Core], kind: EngineKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = core(kind=kind)

    def refuse(blocks: Any) -> Any:
        raise MemoryError("too many")

    monkeypatch.setattr(Block, "joined", refuse)

    async def asking() -> list[Answer]:
        async with asyncio.timeout(10):
            return await asyncio.gather(*(it.ask(float(number)) for number in range(3)))

    assert [len(answer.scores) for answer in asyncio.run(asking())] == [1, 1, 1]
    assert it.spies["flights"].runs == [[0.0], [1.0], [2.0]]
