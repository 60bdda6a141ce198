"""While a version is on trial every request has one answer: of the version that its key gives it, or of the other."""

from __future__ import annotations

import asyncio
import dataclasses
import doctest
import math
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pytest
from google.protobuf.struct_pb2 import Struct
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from everloop_contracts.latency import bucket_limit
from everloop_contracts.stubs.everloop.inference.v1 import inference_pb2 as native
from everloop_contracts.stubs.inference import grpc_service_pb2 as oip
from everloop_features.inputs import Block, Feeds, InputSpec
from everloop_inference import batching
from everloop_inference.adapters.engines import LocalEngines
from everloop_inference.batching import Capacity
from everloop_inference.cost import Cost
from everloop_inference.domain import (
    Answer,
    ArmStats,
    Call,
    EngineKind,
    ServedModel,
    ServingPolicy,
    Strategy,
    Trial,
    Wanted,
)
from everloop_inference.fakes import (
    INPUTS,
    ROW,
    Caller,
    MemoryArtifacts,
    request,
    sample_artifact,
)
from everloop_inference.http.app import HttpApp
from everloop_inference.metrics import MIRRORS_DROPPED
from everloop_inference.models import arms
from everloop_inference.models.load import Loader
from everloop_inference.models.swap import Models
from everloop_inference.models.trial import OnTrial
from everloop_inference.predict import Predictor
from everloop_inference.protocols.tensors import DTYPES, block_from_plain, raw_values
from everloop_inference.rollouts.metrics import TrialMetrics
from everloop_inference.servicer import NativeServicer, OipServicer
from everloop_runtime.errors import EverloopError, Kind

FIELDS = (*(spec.name for spec in INPUTS), "flight_id", "customer")


def on_trial(percent: float, rollout: str = "r-1", key: str = "") -> OnTrial:
    trial = Trial(rollout, Wanted("flights", 2, "run", ""), 1, Strategy.CANARY, percent, key)
    model = _Inputs()
    return OnTrial(trial, model, model)  # type: ignore[arg-type]


class _Inputs:
    inputs = ()


class Engine:
    """Runs what it wraps; fails on rows that say so.

    Attributes:
        kind: slow or not.
        runs: the distances of the rows of each run.
        broken: whether everything fails.
        gate: what a run waits for.
    """

    def __init__(self, inner: Any) -> None:
        self.kind = EngineKind.ONNX
        self.runs: list[list[float]] = []
        self.broken = False
        self.gate: threading.Event | None = None
        self._inner = inner

    def run(self, feeds: Feeds) -> npt.NDArray[np.float32]:
        distances = feeds["distance"][:, 0].tolist()
        self.runs.append(distances)
        if self.gate:
            assert self.gate.wait(10)
        if self.broken or -1.0 in distances:
            raise RuntimeError("the runtime cannot take this row")
        answer: npt.NDArray[np.float32] = self._inner.run(feeds)
        return answer


@dataclasses.dataclass
class Logged:
    """What the log was offered."""

    answer: Answer
    record_ids: list[str]
    latency_micros: list[int]
    carriers: list[str]


class Ledger:
    """A log that remembers."""

    def __init__(self) -> None:
        self.entries: list[Logged] = []

    def offer(
        self,
        answer: Answer,
        block: Any,
        record_ids: Sequence[str],
        latency_micros: Sequence[int],
        size: int,
    ) -> None:
        carriers = answer.model.layout.column(block, "carrier").tolist()
        self.entries.append(Logged(answer, list(record_ids), list(latency_micros), carriers))

    def of(self, version: int) -> list[Logged]:
        return [entry for entry in self.entries if entry.answer.model.version == version]

    def ids(self, version: int) -> list[str]:
        return [name for entry in self.of(version) for name in entry.answer.prediction_ids]

    def records(self, version: int) -> list[str]:
        return [name for entry in self.of(version) for name in entry.record_ids]


class Core:
    """A predictor with version 1 in Production and version 2 to be tried; both engines can be watched."""

    def __init__(self, folder: Path, capacity: Capacity | None = None, **policy: Any) -> None:
        artifacts = MemoryArtifacts()
        loader = Loader(artifacts, LocalEngines(), folder / "cache")
        self.models = Models()
        self.loaded: list[ServedModel] = []
        self.engines: list[Any] = []
        rules = ServingPolicy(id_field="flight_id", fields=FIELDS, **policy)
        for version in (1, 2):
            artifact = sample_artifact(version / 10)
            artifacts.runs[f"run-{version}"] = artifact
            model = loader.load(
                Wanted("flights", version, f"run-{version}", artifact.sha256), rules
            )
            engine = Engine(model.engine)
            self.engines.append(engine)
            # A noisy machine must not make a test's batches small.
            self.loaded.append(dataclasses.replace(model, engine=engine, cost=Cost(1e-6, 1e-9)))
        self.models.swap(self.loaded[0])
        self.log = Ledger()
        self.predictor = Predictor(self.models, self.log, "epoch", capacity, ThreadPoolExecutor(1))

    def begin(
        self,
        strategy: Strategy = Strategy.CANARY,
        percent: float = 100.0,
        key: str = "",
        candidate: ServedModel | None = None,
    ) -> OnTrial:
        candidate = candidate or self.loaded[1]
        trial = Trial("rollout", candidate.wanted, 1, strategy, percent, key)
        self.models.begin(trial, candidate)
        return self.models.trials["flights"]

    def ask(self, rows: int = 1, **changes: Any) -> asyncio.Future[Answer]:
        return self.predictor.rows("flights", [{**ROW, **changes}] * rows, now())

    async def quiet(self) -> None:
        """Returns when every copy has run."""
        deadline = time.monotonic() + 10
        mirror = self.predictor._mirror
        while mirror._busy:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.001)


def now(deadline: float = math.inf) -> Call:
    return Call(time.perf_counter(), 10, deadline)


def needing(model: ServedModel, name: str, needed: InputSpec) -> ServedModel:
    """A version that takes one more input, which its engine does not care about."""
    layout = type(model.layout)([*model.inputs, needed])
    engine = _Dropping(model.engine, needed.name)
    return dataclasses.replace(model, layout=layout, engine=engine)


class _Dropping:
    kind = EngineKind.ONNX

    def __init__(self, inner: Any, name: str) -> None:
        self._inner, self._name = inner, name

    def run(self, feeds: Feeds) -> npt.NDArray[np.float32]:
        rest = {name: values for name, values in feeds.items() if name != self._name}
        answer: npt.NDArray[np.float32] = self._inner.run(rest)
        return answer


@pytest.fixture
def core(tmp_path: Path) -> Callable[..., Core]:
    def make(**options: Any) -> Core:
        return Core(tmp_path, **options)

    return make


# Who gets a request.


@settings(max_examples=30)
@given(percent=st.floats(0, 100), rollout=st.text(max_size=20), prefix=st.text(max_size=20))
def test_the_candidate_gets_its_share(percent: float, rollout: str, prefix: str) -> None:
    on = on_trial(percent, rollout)
    keys = 2000
    share = sum(on.takes(f"{prefix}{number}") for number in range(keys)) / keys
    # Five standard errors: one false alarm in two million.
    assert (
        abs(share - percent / 100)
        <= 5 * math.sqrt(percent * (100 - percent)) / 100 / (math.sqrt(keys)) + 1 / keys
    )


@given(
    value=st.one_of(st.text(min_size=1), st.integers(), st.booleans(), st.floats(width=32)),
    percent=st.floats(0, 100),
)
def test_equal_values_get_the_same_version_in_every_replica(value: Any, percent: float) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        return
    verdict = on_trial(percent).takes(value)
    assert {on_trial(percent).takes(value) for _ in range(5)} == {verdict}


def test_the_assignment_outlives_the_process() -> None:
    on = on_trial(50.0, "b1946ac9")
    taken = [number for number in range(40) if on.takes(f"customer-{number}")]
    # Written down once: another hash would move every caller, and one of Python's own would not be the same twice.
    assert taken == FIXED


FIXED = [0, 2, 4, 8, 10, 11, 12, 14, 16, 20, 27, 29, 31, 32, 33, 34, 35, 37, 38]


def test_a_larger_share_keeps_those_who_were_there() -> None:
    small, large = on_trial(10.0), on_trial(40.0)
    keys = [f"k-{number}" for number in range(3000)]
    assert {key for key in keys if small.takes(key)} < {key for key in keys if large.takes(key)}


def test_rollouts_are_independent_of_each_other() -> None:
    keys = [f"k-{number}" for number in range(4000)]
    for percent in (10.0, 50.0):
        one, two = on_trial(percent, "one"), on_trial(percent, "two")
        both = sum(one.takes(key) and two.takes(key) for key in keys)
        expected = (percent / 100) ** 2
        error = math.sqrt(expected * (1 - expected) / len(keys))
        assert abs(both / len(keys) - expected) < 5 * error


@pytest.mark.parametrize(
    "values", [(5, 5.0, np.float32(5).item()), (0.1, np.float32(0.1).item()), (True, 1, 1.0)]
)
def test_a_value_is_the_same_through_every_door(values: Iterable[Any]) -> None:
    for rollout in range(64):
        on = on_trial(50.0, str(rollout))
        assert len({on.takes(value) for value in values}) == 1


@pytest.mark.parametrize("value", [None, "", math.nan, math.inf, [], {}])
def test_without_a_value_chance_decides(value: Any) -> None:
    on = on_trial(30.0)
    share = sum(on.takes(value) for _ in range(4000)) / 4000
    assert 0.25 < share < 0.35
    assert not any(on_trial(0.0).takes(value) for _ in range(100))
    assert all(on_trial(100.0).takes(value) for _ in range(100))


TENSORS = [
    {"name": "carrier", "datatype": "BYTES", "shape": [1]},
    {"name": "distance", "datatype": "FP64", "shape": [1]},
    {"name": "stops", "datatype": "INT64", "shape": [1]},
    {"name": "departs", "datatype": "BYTES", "shape": [1]},
]


class Doors:
    """Every door, asked with one row; each tells the version that answered."""

    def __init__(self, core: Core) -> None:
        self.http = HttpApp(core.predictor, "mark", 1 << 20)
        self.native: Any = NativeServicer(core.predictor)
        self.oip: Any = OipServicer(core.predictor, lambda: True)

    async def over_http(self, row: dict[str, Any]) -> int:
        body = orjson.dumps({"rows": [row]})
        status, _, content = await request(self.http, "POST", "/v1/models/flights:predict", body)
        assert status == 200, content
        return int(orjson.loads(content)["version"])

    async def over_grpc(self, row: dict[str, Any]) -> int:
        return int((await self.native.Predict(message(row), Caller())).version)

    async def over_stream(self, row: dict[str, Any]) -> int:
        async def asked() -> Any:
            yield native.PredictStreamRequest(id="1", request=message(row))

        (answer,) = [item async for item in self.native.PredictStream(asked(), Caller())]
        return int(answer.response.version)

    async def over_oip_http(self, row: dict[str, Any]) -> int:
        body = orjson.dumps(
            {"inputs": [{**item, "data": [row[item["name"]]]} for item in given_in(row)]}
        )
        status, _, content = await request(self.http, "POST", "/v2/models/flights/infer", body)
        assert status == 200, content
        return int(orjson.loads(content)["model_version"])

    async def over_oip_grpc(self, row: dict[str, Any]) -> int:
        inputs = [oip.ModelInferRequest.InferInputTensor(**item) for item in given_in(row)]
        raws = [raw(item["datatype"], row[item["name"]]) for item in given_in(row)]
        asked = oip.ModelInferRequest(model_name="flights", inputs=inputs, raw_input_contents=raws)
        return int((await self.oip.ModelInfer(asked, Caller())).model_version)


def given_in(row: dict[str, Any]) -> list[dict[str, Any]]:
    more = [{"name": name, "datatype": "BYTES", "shape": [1]} for name in ("flight_id", "customer")]
    return [*TENSORS, *(item for item in more if item["name"] in row)]


def message(row: dict[str, Any]) -> native.PredictRequest:
    struct = Struct()
    struct.update(row)
    return native.PredictRequest(model="flights", rows=[struct])


def raw(datatype: str, value: Any) -> bytes:
    if datatype == "BYTES":
        return raw_values([value])
    return np.array(value, DTYPES[datatype]).tobytes()


DOORS: list[Any] = [
    Doors.over_http,
    Doors.over_grpc,
    Doors.over_stream,
    Doors.over_oip_http,
    Doors.over_oip_grpc,
]


@pytest.mark.parametrize("key", ["", "customer", "carrier", "distance"])
def test_every_door_gives_a_key_the_same_version(core: Callable[..., Core], key: str) -> None:
    it = core()
    on = it.begin(percent=50, key=key)

    async def asking() -> None:
        doors = Doors(it)
        seen = set()
        for number in range(12):
            row = {
                **ROW,
                "flight_id": f"f-{number}",
                "customer": f"c-{number}",
                "carrier": f"A{number}",
                "distance": number + 0.1,
            }
            version = 2 if on.takes(row[key or "flight_id"]) else 1
            assert [await door(doors, row) for door in DOORS] == [version] * len(DOORS)
            seen.add(version)
        assert seen == {1, 2}

    asyncio.run(asking())
    records = it.log.records(1) + it.log.records(2)
    assert Counter(records) == {f"f-{number}": len(DOORS) for number in range(12)}


def test_a_request_with_several_rows_goes_by_its_first_to_one_version(
    core: Callable[..., Core],
) -> None:
    it = core()
    on = it.begin(percent=50)
    rows = [{**ROW, "flight_id": f"f-{number}"} for number in range(20)]

    async def asking() -> None:
        for start in range(20):
            answer = await it.predictor.rows("flights", rows[start:], now())
            assert answer.model.version == (2 if on.takes(f"f-{start}") else 1)
            assert len(answer.scores) == 20 - start

    asyncio.run(asking())


def test_who_names_a_version_gets_it_from_a_canary_and_not_from_a_shadow(
    core: Callable[..., Core],
) -> None:
    it = core()

    async def version(named: str) -> int:
        columns = {name: [ROW[name]] for name in ("carrier", "distance", "stops", "departs")}

        def quick(model: ServedModel) -> tuple[Block, Sequence[str]] | None:
            return block_from_plain(columns, model.layout, model.policy.id_field)

        asked = it.predictor.tensors("flights", named, quick, lambda: [], now())
        return (await asked).model.version

    for percent in (0.0, 100.0):
        it.begin(percent=percent)
        assert asyncio.run(version("1")) == 1
        assert asyncio.run(version("2")) == 2
        with pytest.raises(EverloopError, match="version 3"):
            asyncio.run(version("3"))
    it.begin(Strategy.SHADOW)
    assert asyncio.run(version("1")) == 1
    with pytest.raises(EverloopError) as refused:
        asyncio.run(version("2"))
    assert (refused.value.kind, refused.value.reason) == (Kind.NOT_FOUND, "VERSION_NOT_FOUND")


def test_both_versions_are_described(core: Callable[..., Core]) -> None:
    it = core()
    doors = Doors(it)

    def told(path: str) -> Any:
        _, _, content = asyncio.run(request(doors.http, "GET", path))
        return orjson.loads(content)

    def index() -> list[str]:
        return [item["version"] for item in listed()]

    def listed() -> Any:
        _, _, content = asyncio.run(request(doors.http, "POST", "/v2/repository/index", b"{}"))
        return orjson.loads(content)

    assert "on_trial" not in told("/v1/models/flights")
    it.begin(percent=12.5)
    expected = {"rollout": "rollout", "version": 2, "strategy": "canary", "percent": 12.5}
    assert told("/v1/models/flights")["on_trial"] == expected
    assert told("/v1/models")["models"][0]["on_trial"] == expected
    model = asyncio.run(doors.native.GetModel(native.GetModelRequest(model="flights"), Caller()))
    found = model.model.on_trial
    assert (found.rollout, found.version, found.strategy, found.percent) == (
        "rollout",
        2,
        "canary",
        12.5,
    )
    assert told("/v2/models/flights")["versions"] == ["1", "2"]
    assert told("/v2/models/flights/versions/2/ready")["ready"] is True
    assert index() == ["1", "2"]
    metadata = oip.ModelMetadataRequest(name="flights", version="2")
    assert list(asyncio.run(doors.oip.ModelMetadata(metadata, Caller())).versions) == ["1", "2"]
    # A shadow answers nobody: nobody is told that it could be asked.
    it.begin(Strategy.SHADOW)
    assert told("/v1/models/flights")["on_trial"]["strategy"] == "shadow"
    assert told("/v2/models/flights")["versions"] == ["1"]
    assert index() == ["1"]
    it.models.end("flights")
    assert "on_trial" not in told("/v1/models/flights")


def test_explanations_are_of_the_version_that_serves(core: Callable[..., Core]) -> None:
    it = core()
    it.begin()
    model, _ = asyncio.run(it.predictor.explain("flights", [ROW], "", now()))
    assert model.version == 1


# What the candidate cannot answer.


def test_what_the_candidate_fails_is_answered_by_the_version_that_serves(
    core: Callable[..., Core], caplog: pytest.LogCaptureFixture
) -> None:
    it = core()
    on = it.begin()
    it.engines[1].broken = True

    async def asking() -> list[Answer]:
        return await asyncio.gather(*(it.ask(flight_id=f"f-{number}") for number in range(30)))

    answers = asyncio.run(asking())
    assert {answer.model.version for answer in answers} == {1}
    assert sorted(it.log.records(1)) == sorted(f"f-{number}" for number in range(30))
    assert it.log.ids(2) == []
    assert on.candidate_arm.stats() == ArmStats(requests=30, errors=30)
    assert (on.baseline_arm.stats().requests, on.baseline_arm.stats().errors) == (30, 0)
    assert caplog.text.count("version 2, on trial, failed a request, version 1 answers it") == 1


def test_only_the_rows_that_break_the_candidate_fall_back(core: Callable[..., Core]) -> None:
    it = core()
    on = it.begin()

    async def asking() -> list[Answer]:
        asked = [it.ask(distance=distance) for distance in (1.0, -1.0, 3.0, 4.0)]
        return await asyncio.gather(*asked, return_exceptions=True)  # type: ignore[return-value]

    it.engines[0].run = it.engines[0]._inner.run  # it takes what breaks the candidate
    versions = [answer.model.version for answer in asyncio.run(asking())]
    assert versions == [2, 1, 2, 2]
    stats = on.candidate_arm.stats()
    assert (stats.requests, stats.errors, stats.rows) == (4, 1, 3)
    assert sum(stats.latency_counts) == 3


def test_a_slow_candidate_does_not_slow_the_counts_of_the_other(core: Callable[..., Core]) -> None:
    it = core()
    on = it.begin(percent=50)
    inner = it.engines[1]._inner.run
    slow, limit = 0.2, 0.1

    def run(feeds: Feeds) -> Any:
        until = time.perf_counter() + slow
        while time.perf_counter() < until:
            pass
        if -1.0 in feeds["distance"]:
            raise RuntimeError("late")
        return inner(feeds)

    it.engines[1].run = run
    it.engines[0].run = it.engines[0]._inner.run

    async def asking() -> None:
        taken = [name for name in map(str, range(100)) if on.takes(name)]
        other = [name for name in map(str, range(100)) if not on.takes(name)]
        # It answers late, the baseline queues behind it; then it fails late, and the baseline answers for it.
        await asyncio.gather(it.ask(flight_id=taken[0]), it.ask(flight_id=other[0]))
        await it.ask(flight_id=taken[0], distance=-1.0)

    asyncio.run(asking())

    def slow_ones(stats: ArmStats) -> int:
        return sum(n for i, n in enumerate(stats.latency_counts) if bucket_limit(i) > limit)

    assert slow_ones(on.candidate_arm.stats()) == 1
    assert (on.baseline_arm.stats().requests, slow_ones(on.baseline_arm.stats())) == (2, 0)


def test_what_breaks_both_fails_once_and_does_not_go_round(core: Callable[..., Core]) -> None:
    it = core()
    on = it.begin()

    async def asking() -> None:
        with pytest.raises(RuntimeError):
            await it.ask(distance=-1.0)

    asyncio.run(asking())
    assert (it.engines[0].runs, it.engines[1].runs) == ([[-1.0]], [[-1.0]])
    for arm in (on.candidate_arm, on.baseline_arm):
        assert arm.stats() == ArmStats(requests=1, errors=1)


def test_a_candidate_of_another_signature_answers_those_who_give_what_it_needs(
    core: Callable[..., Core],
) -> None:
    it = core()
    wind = InputSpec("customer", INPUTS[0].type)
    on = it.begin(candidate=needing(it.loaded[1], "flights", wind))

    async def asking() -> list[int]:
        doors = Doors(it)
        rows = [{**ROW, "customer": "c"}, dict(ROW)]
        return [await door(doors, row) for row in rows for door in DOORS]

    assert asyncio.run(asking()) == [2] * len(DOORS) + [1] * len(DOORS)
    stats = on.candidate_arm.stats()
    assert (stats.requests, stats.errors) == (2 * len(DOORS), len(DOORS))


def test_a_mistake_of_the_caller_is_told_by_the_version_that_serves_and_is_no_error(
    core: Callable[..., Core],
) -> None:
    it = core()
    on = it.begin()

    async def asking() -> None:
        for changes in ({"distance": "far"}, {"unheard": 1}, {"flight_id": 7}):
            with pytest.raises(EverloopError) as refused:
                await it.ask(**changes)
            assert refused.value.kind is Kind.INVALID
        with pytest.raises(EverloopError, match="no rows"):
            await it.predictor.rows("flights", [], now())

    asyncio.run(asking())
    assert on.candidate_arm.stats() == on.baseline_arm.stats() == ArmStats()


def test_a_full_queue_of_the_candidate_sends_requests_to_the_other(
    core: Callable[..., Core],
) -> None:
    it = core(capacity=Capacity(model_requests=2, requests=4))
    on = it.begin()

    async def asking() -> list[int]:
        asked = [it.ask() for _ in range(4)]
        with pytest.raises(EverloopError) as refused:
            it.ask()
        assert refused.value.reason == "OVERLOADED"
        return [answer.model.version for answer in await asyncio.gather(*asked)]

    assert asyncio.run(asking()) == [2, 2, 1, 1]
    # A crowd is no fault of the candidate's.
    assert (on.candidate_arm.stats().requests, on.candidate_arm.stats().errors) == (2, 0)
    assert on.baseline_arm.stats().requests == 2


def test_who_is_gone_is_not_answered_by_another(core: Callable[..., Core]) -> None:
    it = core()
    on = it.begin()
    it.engines[1].kind = EngineKind.MLFLOW
    it.engines[1].broken = True
    it.engines[1].gate = threading.Event()

    async def asking() -> None:
        answer = it.ask()
        while not it.engines[1].runs:
            await asyncio.sleep(0)
        answer.cancel()
        it.engines[1].gate.set()
        while it.predictor.batcher.crowded:
            await asyncio.sleep(0)

    asyncio.run(asking())
    assert it.engines[0].runs == []
    assert on.baseline_arm.stats() == ArmStats()


def test_a_deadline_holds_for_the_second_try(core: Callable[..., Core]) -> None:
    it = core()
    it.begin()
    it.engines[1].kind = EngineKind.MLFLOW
    it.engines[1].broken = True
    it.engines[1].gate = threading.Event()

    async def asking() -> None:
        deadline = time.perf_counter() + 0.01
        answer = it.predictor.rows("flights", [ROW], now(deadline))
        while time.perf_counter() < deadline:
            await asyncio.sleep(0)
        it.engines[1].gate.set()
        with pytest.raises(EverloopError) as late:
            await answer
        assert late.value.kind is Kind.DEADLINE

    asyncio.run(asking())
    assert it.engines[0].runs == []


# Shadows.


def test_a_shadow_never_answers_and_is_logged_with_the_same_record_ids(
    core: Callable[..., Core],
) -> None:
    it = core()
    on = it.begin(Strategy.SHADOW)

    async def asking() -> list[Answer]:
        answers = [await it.ask(flight_id=f"f-{number}") for number in range(10)]
        answers += await asyncio.gather(*(it.ask(3, flight_id=f"m-{n}") for n in range(5)))
        await it.quiet()
        return answers

    answers = asyncio.run(asking())
    assert {answer.model.version for answer in answers} == {1}
    assert it.log.records(2) == it.log.records(1)
    assert len(it.log.records(2)) == 25
    assert not set(it.log.ids(1)) & set(it.log.ids(2))
    assert all(entry.answer.model.shadow for entry in it.log.of(2))
    assert not any(entry.answer.model.shadow for entry in it.log.of(1))
    stats = on.candidate_arm.stats()
    assert (stats.requests, stats.errors, stats.rows) == (15, 0, 25)
    assert on.baseline_arm.stats().requests == 15
    # Its own runs, and not the time since the requests.
    for entry in it.log.of(2):
        assert len(set(entry.latency_micros)) == 1


def test_a_shadow_runs_after_the_answer_has_left(
    core: Callable[..., Core], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("everloop_inference.rollouts.mirror.PAUSE_SECONDS", 0.2)
    it = core()
    it.begin(Strategy.SHADOW)

    async def asking() -> None:
        doors = Doors(it)
        for door in DOORS:
            ran = len(it.engines[1].runs)
            await door(doors, {**ROW, "flight_id": "f"})
            assert len(it.engines[1].runs) == ran, door
            await it.quiet()
            assert len(it.engines[1].runs) == ran + 1, door

    asyncio.run(asking())


@pytest.mark.parametrize("same", [True, False])
def test_a_shadow_predicts_what_was_asked(core: Callable[..., Core], same: bool) -> None:
    it = core()
    spec = InputSpec("customer", INPUTS[0].type, nullable=True)
    shadow = it.loaded[1] if same else needing(it.loaded[1], "flights", spec)
    it.begin(Strategy.SHADOW, candidate=shadow)
    row = {**ROW, "carrier": "UA", "distance": 70.5, "age": None, "weekend": None}

    async def asking() -> None:
        doors = Doors(it)
        for door in DOORS:
            await door(doors, row)
            await it.quiet()

    asyncio.run(asking())
    layout = it.loaded[1].layout
    expected = it.engines[1]._inner.run(layout.feeds(layout.from_rows([row])))
    made = it.log.of(2)
    assert len(made) == len(DOORS)
    for entry in made:
        np.testing.assert_allclose(entry.answer.probabilities, expected, atol=1e-6)
        assert entry.carriers == ["UA"]


def test_a_shadow_sees_its_share_by_key(core: Callable[..., Core]) -> None:
    it = core()
    on = it.begin(Strategy.SHADOW, percent=30)
    names = [f"f-{number}" for number in range(300)]

    async def asking() -> None:
        for name in names:
            await it.ask(flight_id=name)
        await it.quiet()

    asyncio.run(asking())
    assert it.log.records(2) == [name for name in names if on.takes(name)]


def test_a_shadow_that_fails_or_refuses_touches_nobody(core: Callable[..., Core]) -> None:
    it = core()
    spec = InputSpec("customer", INPUTS[0].type)
    on = it.begin(Strategy.SHADOW, candidate=needing(it.loaded[1], "flights", spec))
    it.engines[0].run = it.engines[0]._inner.run

    async def asking() -> None:
        for changes in ({"customer": "c"}, {}, {"customer": "c", "distance": -1.0}):
            assert (await it.ask(**changes)).model.version == 1
        await it.quiet()

    asyncio.run(asking())
    stats = on.candidate_arm.stats()
    assert (stats.requests, stats.errors, stats.rows) == (3, 2, 1)
    assert len(it.log.ids(1)) == 3
    assert len(it.log.ids(2)) == 1


def test_in_a_crowd_nothing_is_mirrored_and_what_was_not_is_counted(
    core: Callable[..., Core], monkeypatch: pytest.MonkeyPatch
) -> None:
    it = core(capacity=Capacity(mirror_rows=20))
    it.begin(Strategy.SHADOW)
    before = MIRRORS_DROPPED.labels("flights")._value.get()

    def dropped() -> int:
        return int(MIRRORS_DROPPED.labels("flights")._value.get() - before)

    async def asking() -> None:
        # No room: the first copies wait, the rest is dropped.
        await asyncio.gather(*(it.ask(2) for _ in range(15)))
        await asyncio.sleep(0)
        assert dropped() == 5
        await it.quiet()
        assert len(it.log.ids(2)) == 20
        # One request fits into an empty queue whatever its size.
        await it.ask(50)
        await it.quiet()
        assert len(it.log.ids(2)) == 70
        # A crowd: nothing is taken, and what waits already goes on waiting.
        await it.ask()
        monkeypatch.setattr(batching, "CROWD", -1)
        await it.ask()
        await asyncio.sleep(0.02)
        assert len(it.log.ids(2)) == 70
        assert dropped() == 6
        monkeypatch.setattr(batching, "CROWD", 256)
        await it.quiet()
        assert len(it.log.ids(2)) == 71

    asyncio.run(asking())


def test_what_waits_for_a_shadow_is_bounded_by_its_size(core: Callable[..., Core]) -> None:
    it = core(capacity=Capacity(mirror_bytes=35))
    it.begin(Strategy.SHADOW)
    before = MIRRORS_DROPPED.labels("flights")._value.get()

    async def asking() -> None:
        for asked, made in ((5, 3), (2, 5)):  # of 10 bytes each
            await asyncio.gather(*(it.ask() for _ in range(asked)))
            await it.quiet()
            assert len(it.log.ids(2)) == made
        # One request fits into an empty queue whatever its size.
        await it.predictor.rows("flights", [ROW], Call(time.perf_counter(), 1000))
        await it.quiet()

    asyncio.run(asking())
    assert len(it.log.ids(2)) == 6
    assert MIRRORS_DROPPED.labels("flights")._value.get() - before == 2


def test_a_slow_shadow_leaves_the_loop_to_others(core: Callable[..., Core]) -> None:
    it = core()
    on = it.begin(Strategy.SHADOW)
    it.engines[1].kind = EngineKind.MLFLOW
    it.engines[1].gate = threading.Event()

    async def asking() -> None:
        await it.ask()
        while not it.engines[1].runs:
            await asyncio.sleep(0.001)
        for _ in range(10):
            assert (await it.ask()).model.version == 1
        it.engines[1].gate.set()
        await it.quiet()

    asyncio.run(asking())
    assert on.candidate_arm.stats().requests == 11
    assert [len(run) for run in it.engines[1].runs] == [1, 10]


@pytest.mark.parametrize("error", [StopIteration(), SystemExit(1), None])
def test_a_shadow_that_fails_in_any_way_is_asked_again(
    core: Callable[..., Core], error: BaseException | None
) -> None:
    it = core()
    on = it.begin(Strategy.SHADOW)
    engine = it.engines[1]
    engine.kind = EngineKind.MLFLOW
    threads = it.predictor._mirror._slow

    def once(feeds: Feeds) -> Any:
        del engine.run
        assert error is not None
        raise error

    if error is None:  # no thread takes it
        it.predictor._mirror._slow = ThreadPoolExecutor(1)
        it.predictor._mirror._slow.shutdown()
    else:
        engine.run = once

    async def asking() -> None:
        await it.ask()
        await it.quiet()
        it.predictor._mirror._slow = threads
        await it.ask()
        await it.quiet()

    asyncio.run(asking())
    stats = on.candidate_arm.stats()
    assert (stats.requests, stats.errors) == ((1, 0) if error is None else (2, 1))


def test_what_was_not_answered_is_not_mirrored(core: Callable[..., Core]) -> None:
    it = core()
    on = it.begin(Strategy.SHADOW)

    async def asking() -> None:
        with pytest.raises(RuntimeError):
            await it.ask(distance=-1.0)
        gone = it.ask()
        gone.cancel()
        await asyncio.sleep(0)
        await it.quiet()

    asyncio.run(asking())
    assert it.engines[1].runs == []
    assert on.baseline_arm.stats().errors == 1


# Promotion, abort and the counts.


def test_the_end_of_a_trial_changes_one_reference(core: Callable[..., Core]) -> None:
    it = core()
    engine = it.loaded[1].engine
    for strategy in Strategy:
        it.begin(strategy)
        candidate = it.models.trials["flights"].candidate
        assert candidate.shadow is (strategy is Strategy.SHADOW)
        it.models.end("flights")
        assert it.models.trials == {}
        assert [model.version for model in it.models.answering] == [1]
    it.begin(Strategy.SHADOW)
    promoted = it.models.swap(it.models.trials["flights"].candidate)
    assert (promoted.version, promoted.previous_version, promoted.shadow) == (2, 1, False)
    assert promoted.engine is engine
    assert it.models.trials == {}


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1 << 32))
def test_the_counts_are_exact_whatever_runs_at_once(core: Callable[..., Core], seed: int) -> None:
    it = core()
    on = it.begin(percent=50)
    it.engines[0].run = it.engines[0]._inner.run
    chance = random.Random(seed)
    stop = threading.Event()
    torn: list[ArmStats] = []

    def watch() -> None:
        while not stop.is_set():
            for arm in (on.candidate_arm, on.baseline_arm):
                stats = arm.stats()
                if sum(stats.latency_counts) != stats.requests - stats.errors:
                    torn.append(stats)

    watcher = threading.Thread(target=watch)
    watcher.start()
    asked = [
        (f"f-{number}", chance.choice([-1.0, 1.0, 1.0, 1.0]), chance.randint(1, 4))
        for number in range(400)
    ]

    async def asking() -> list[Answer]:
        answers: list[Answer] = []
        while rest := asked[len(answers) :]:
            some = rest[: chance.randint(1, 60)]
            answers += await asyncio.gather(
                *(it.ask(rows, flight_id=name, distance=far) for name, far, rows in some)
            )
        return answers

    answers = asyncio.run(asking())
    stop.set()
    watcher.join()
    assert torn == []
    mine = [item for item in asked if on.takes(item[0])]
    failed = [item for item in mine if item[1] < 0]
    candidate, baseline = on.candidate_arm.stats(), on.baseline_arm.stats()
    assert (candidate.requests, candidate.errors) == (len(mine), len(failed))
    assert candidate.rows == sum(rows for _, far, rows in mine if far > 0)
    assert (baseline.requests, baseline.errors) == (400 - len(mine) + len(failed), 0)
    assert candidate.rows + baseline.rows == sum(rows for *_, rows in asked)
    assert len(it.log.ids(2)) == candidate.rows
    by = Counter(answer.model.version for answer in answers)
    assert by == {2: len(mine) - len(failed), 1: baseline.requests}


@given(seconds=st.floats(0, 1000))
def test_a_latency_is_counted_in_its_bucket(seconds: float) -> None:
    arm = arms.Arm()
    arm.predicted([seconds], 1)
    bucket = arm.stats().latency_counts.index(1)
    assert bucket == 63 or seconds <= bucket_limit(bucket)
    assert bucket == 0 or seconds > bucket_limit(bucket - 1)


def test_prometheus_sees_both_arms_of_a_trial_and_nothing_else(core: Callable[..., Core]) -> None:
    it = core()
    metrics = TrialMetrics(it.models)

    def series() -> dict[tuple[str, ...], float]:
        return {
            (sample.name, sample.labels["arm"], sample.labels.get("le", "")): sample.value
            for family in metrics.collect()
            for sample in family.samples
        }

    assert series() == {}
    it.begin(percent=100)

    async def asking() -> None:
        for _ in range(3):
            await it.ask(2)

    asyncio.run(asking())
    found = series()
    name = "everloop_inference_trial"
    assert found[f"{name}_requests_total", "candidate", ""] == 3
    assert found[f"{name}_rows_total", "candidate", ""] == 6
    assert found[f"{name}_errors_total", "candidate", ""] == 0
    assert found[f"{name}_version", "candidate", ""] == 2
    assert found[f"{name}_version", "baseline", ""] == 1
    assert found[f"{name}_requests_total", "baseline", ""] == 0
    assert found[f"{name}_duration_seconds_bucket", "candidate", "+Inf"] == 3
    it.models.end("flights")
    assert series() == {}


def test_the_examples_hold() -> None:
    assert doctest.testmod(arms).failed == 0
