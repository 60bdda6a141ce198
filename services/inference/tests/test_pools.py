"""A model in a pool is asked like any other, at the same address; without Ray, which only carries the requests."""

from __future__ import annotations

import asyncio
import dataclasses
import http.client
import json
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from prometheus_client import REGISTRY, Histogram
from pydantic import ValidationError

from everloop_contracts.stubs.everloop.inference.v1 import inference_pb2 as native
from everloop_contracts.stubs.everloop.inference.v1 import inference_pb2_grpc as native_grpc
from everloop_contracts.stubs.inference import grpc_service_pb2 as oip
from everloop_contracts.stubs.inference import grpc_service_pb2_grpc as oip_grpc
from everloop_inference.domain import PoolPolicy, Production, Strategy, Wanted
from everloop_inference.fakes import ROW, sample_artifact
from everloop_inference.ongoing import Ongoing
from everloop_inference.placement.autoscaling import ONGOING, policy, pool_policy
from everloop_inference.pools.pools import Pools
from everloop_inference.ports import HttpReply, HttpRequest, Lost, RpcReply, RpcRequest
from everloop_inference.replica import Replica
from everloop_inference.settings import InferenceSettings
from everloop_runtime.errors import EverloopError, Kind

T = TypeVar("T")

TENSORS = [
    {"name": name, "datatype": datatype, "shape": [1], "data": [ROW[name]]}
    for name, datatype in (
        ("carrier", "BYTES"),
        ("distance", "FP64"),
        ("stops", "INT64"),
        ("departs", "BYTES"),
    )
]


class Carrier:
    """Brings requests to a replica in this process, as Ray brings them to one elsewhere."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.asked: list[str] = []
        self.losses = 0
        self.held = asyncio.Event()
        self.held.set()
        self.cancelled = threading.Event()

    async def http(self, request: HttpRequest) -> HttpReply:
        return await self._carry(request.path, self.replica.http(request))

    async def rpc(self, request: RpcRequest) -> RpcReply:
        return await self._carry(request.path, self.replica.rpc(request))

    async def _carry(self, path: str, answer: Coroutine[Any, Any, T]) -> T:
        self.asked.append(path)
        try:
            await self.held.wait()
            if self.losses:
                self.losses -= 1
                raise Lost("killed")
            return await answer
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        finally:
            answer.close()


class Split:
    """A replica that listens, and another process's behind it that has one model for itself."""

    def __init__(self, world: Any) -> None:
        pool = PoolPolicy(0, 1, 16, 1.0)
        policy = dataclasses.replace(world.policies["flights"], pool=pool)
        self.world = world
        world.policies = {"flights": policy}
        self.replicas: list[Replica] = []
        self.carrier = Carrier(self.start(only="flights"))
        self.front = self.start(pools={"flights": self.carrier})
        self.channel = grpc.insecure_channel(world.settings.predict_grpc_address)
        self.native = native_grpc.InferenceServiceStub(self.channel)
        self.oip = oip_grpc.GRPCInferenceServiceStub(self.channel)

    def start(self, **more: Any) -> Replica:
        world = self.world
        replica = Replica(
            world.settings,
            world.policies,
            "mark",
            registry=world.registry,
            artifacts=world.artifacts,
            sink=world.sink,
            **more,
        )
        replica.start()
        self.replicas.append(replica)
        return replica

    def stop(self) -> None:
        self.channel.close()
        for replica in reversed(self.replicas):
            replica.stop()

    def ask(
        self, method: str, path: str, body: object = None, **headers: str
    ) -> tuple[int, Any, dict[str, str]]:
        connection = http.client.HTTPConnection(self.world.settings.http_address, timeout=10)
        content = json.dumps(body) if body is not None else None
        connection.request(method, path, content, headers)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, json.loads(data), found


@pytest.fixture
def split(one_process: None, world: Any) -> Iterator[Split]:
    world.publish(1)
    world.publish(1, sample_artifact(), name="others")
    split = Split(world)
    yield split
    split.stop()


def test_every_door_answers_for_a_model_in_a_pool(split: Split, until: Callable[..., None]) -> None:
    assert set(split.front.models.serving) == {"others"}
    pool = split.carrier.replica
    epoch = pool.predictor._epoch

    status, predicted, headers = split.ask("POST", "/v1/models/flights:predict", {"rows": [ROW]})
    assert (status, predicted["version"]) == (200, 1)
    assert int(headers["content-length"]) == len(json.dumps(predicted, separators=(",", ":")))
    score = predicted["predictions"][0]["score"]
    assert predicted["predictions"][0]["prediction_id"].startswith(epoch)

    status, inferred, _ = split.ask(
        "POST", "/v2/models/flights/infer", {"id": "7", "inputs": TENSORS}
    )
    assert (status, inferred["id"], inferred["model_version"]) == (200, "7", "1")
    outputs = {output["name"]: output["data"] for output in inferred["outputs"]}
    assert outputs["prediction_id"][0].startswith(epoch)

    status, _, _ = split.ask("POST", "/v2/models/flights/versions/1/infer", {"inputs": TENSORS})
    assert status == 200
    status, explained, _ = split.ask("POST", "/v1/models/flights:explain", {"rows": [ROW]})
    assert (status, explained["version"]) == (200, 1)

    request = native.PredictRequest(model="flights")
    request.rows.add().update(ROW)
    answer = split.native.Predict(request)
    assert answer.predictions[0].score == pytest.approx(score)
    assert split.native.Explain(native.ExplainRequest(model="flights", rows=request.rows)).version
    assert split.native.GetModel(native.GetModelRequest(model="flights")).model.version == 1
    metadata = split.oip.ModelMetadata(oip.ModelMetadataRequest(name="flights"))
    assert list(metadata.versions) == ["1"]
    asked = oip.ModelInferRequest(model_name="flights", id="8")
    for name, field, value in (
        ("carrier", "bytes_contents", str(ROW["carrier"]).encode()),
        ("distance", "fp64_contents", float(ROW["distance"])),
        ("stops", "int64_contents", ROW["stops"]),
        ("departs", "bytes_contents", str(ROW["departs"]).encode()),
    ):
        datatype = {"distance": "FP64", "stops": "INT64"}.get(name, "BYTES")
        tensor = asked.inputs.add(name=name, datatype=datatype, shape=[1])
        getattr(tensor.contents, field).append(value)
    told = split.oip.ModelInfer(asked)
    assert (told.id, told.model_version) == ("8", "1")
    probabilities = next(item for item in told.outputs if item.name == "probabilities")
    assert list(probabilities.contents.fp32_contents) == pytest.approx(outputs["probabilities"])

    # A stream may ask for both kinds; each request finds its own way.
    messages = [
        native.PredictStreamRequest(id=f"{name}", request=_request(name))
        for name in ("flights", "others", "ghost")
    ]
    answers = {message.id: message for message in split.native.PredictStream(iter(messages))}
    assert answers["flights"].response.predictions[0].score == pytest.approx(score)
    assert answers["others"].response.version == 1
    assert answers["ghost"].error.reason == "MODEL_NOT_FOUND"

    # What was answered there was logged there, and nothing here.
    until(lambda: pool.log.books.counts("flights").logged == 6)
    assert split.front.log.books.counts("flights").served == 0


def _request(name: str) -> native.PredictRequest:
    request = native.PredictRequest(model=name)
    request.rows.add().update(ROW)
    return request


def test_errors_of_a_pool_arrive_as_they_are(split: Split) -> None:
    status, error, _ = split.ask("POST", "/v1/models/flights:predict", {"rows": [{"nope": 1}]})
    assert (status, error["reason"], error["field"]) == (422, "MISSING_FIELD", "carrier")
    status, error, _ = split.ask("POST", "/v2/models/flights/versions/9/infer", {"inputs": TENSORS})
    assert (status, error["reason"]) == (404, "VERSION_NOT_FOUND")

    request = native.PredictRequest(model="flights")
    request.rows.add().update({"nope": 1})
    with pytest.raises(grpc.RpcError) as refused:
        split.native.Predict(request)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    found = rpc_status.from_call(refused.value)  # type: ignore[arg-type]
    assert found is not None
    info = error_details_pb2.ErrorInfo()
    assert len(found.details) == 1 and found.details[0].Unpack(info)
    assert (info.reason, info.metadata["field"]) == ("MISSING_FIELD", "carrier")

    message = native.PredictStreamRequest(id="1", request=request)
    (answer,) = split.native.PredictStream(iter([message]))
    assert (answer.error.reason, answer.error.metadata["field"]) == ("MISSING_FIELD", "carrier")


def test_what_pools_serve_is_told_without_asking_them(split: Split) -> None:
    _, index, _ = split.ask("POST", "/v2/repository/index", {})
    assert {entry["name"]: entry["version"] for entry in index} == {"flights": "1", "others": "1"}
    _, names, _ = split.ask("GET", "/v2/models")
    assert set(names["models"]) == {"flights", "others"}
    _, listed, _ = split.ask("GET", "/v1/models")
    assert {"name": "flights", "version": 1, "pool": True} in listed["models"]
    assert split.ask("GET", "/v2/models/flights/ready")[0] == 200
    assert split.ask("GET", "/v2/models/flights/versions/1/ready")[0] == 200
    assert split.ask("GET", "/v2/models/flights/versions/2/ready")[0] == 404
    assert split.oip.ModelReady(oip.ModelReadyRequest(name="flights")).ready
    with pytest.raises(grpc.RpcError) as refused:
        split.oip.ModelReady(oip.ModelReadyRequest(name="flights", version="2"))
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    models = split.oip.RepositoryIndex(oip.RepositoryIndexRequest()).models
    assert {model.name for model in models} == {"flights", "others"}
    version = REGISTRY.get_sample_value("everloop_inference_pool_version", {"model": "flights"})
    assert version == 1.0
    assert split.carrier.asked == []


def test_a_promotion_reaches_both(split: Split, until: Callable[..., None]) -> None:
    split.world.publish(2)
    until(lambda: split.ask("GET", "/v2/models/flights/versions/2/ready")[0] == 200)

    def version() -> int:
        return int(split.ask("POST", "/v1/models/flights:predict", {"rows": [ROW]})[1]["version"])

    until(lambda: version() == 2)


def test_a_request_whose_replica_dies_is_answered_by_the_next(split: Split) -> None:
    split.carrier.losses = 2
    assert split.ask("POST", "/v1/models/flights:predict", {"rows": [ROW]})[0] == 200
    assert len(split.carrier.asked) == 3
    split.carrier.losses = 3
    status, error, headers = split.ask("POST", "/v1/models/flights:predict", {"rows": [ROW]})
    assert (status, error["reason"]) == (503, "POOL_UNAVAILABLE")
    assert headers["retry-after"] == "1"


def test_a_caller_that_is_gone_is_not_waited_for(split: Split) -> None:
    split.carrier.held.clear()
    connection = http.client.HTTPConnection(split.world.settings.http_address, timeout=10)
    connection.request("POST", "/v1/models/flights:predict", json.dumps({"rows": [ROW]}))
    deadline = time.monotonic() + 10
    while not split.carrier.asked:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    connection.close()
    assert split.carrier.cancelled.wait(10)


def test_a_pools_replica_without_its_model_says_to_come_back(world: Any) -> None:
    replica = Replica(
        world.settings,
        world.policies,
        only="flights",
        registry=world.registry,
        artifacts=world.artifacts,
        sink=world.sink,
    )
    replica.start()
    try:
        request = HttpRequest("GET", "/v1/models/flights", (), b"")
        reply = asyncio.run(replica.http(request))
    finally:
        replica.stop()
    assert (reply.status, json.loads(reply.body)["reason"]) == (503, "MODEL_NOT_LOADED")
    assert (b"retry-after", b"1") in reply.headers


def versions_listed(split: Split) -> tuple[list[str], list[str]]:
    """Over HTTP and over gRPC."""
    _, index, _ = split.ask("POST", "/v2/repository/index", {})
    listed = split.oip.RepositoryIndex(oip.RepositoryIndexRequest()).models
    return (
        [entry["version"] for entry in index if entry["name"] == "flights"],
        [entry.version for entry in listed if entry.name == "flights"],
    )


def is_ready(split: Split, version: int) -> tuple[bool, bool]:
    """As `versions_listed`."""
    status, _, _ = split.ask("GET", f"/v2/models/flights/versions/{version}/ready")
    asked = oip.ModelReadyRequest(name="flights", version=str(version))
    try:
        over_grpc = split.oip.ModelReady(asked).ready
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.NOT_FOUND
        over_grpc = False
    return status == 200, bool(over_grpc)


@pytest.mark.parametrize("strategy", list(Strategy))
@pytest.mark.parametrize("is_promoted", [True, False])
def test_a_version_is_tried_in_a_pool(
    split: Split, until: Callable[..., None], strategy: Strategy, is_promoted: bool
) -> None:
    world, pool = split.world, split.carrier.replica
    answers = strategy is not Strategy.SHADOW
    trial = world.begin(world.store(2), strategy=strategy, percent=50)
    until(lambda: pool.models.trials)
    until(lambda: is_ready(split, 2) == (answers, answers))
    assert split.front.models.trials == {}
    listed = ["1", "2"] if answers else ["1"]
    assert versions_listed(split) == (listed, listed)
    assert split.oip.ModelMetadata(oip.ModelMetadataRequest(name="flights")).versions[0] == "1"
    described = split.native.GetModel(native.GetModelRequest(model="flights")).model
    assert described.on_trial.version == 2

    # Whoever is asked over whatever door, the same record gets the same version.
    seen = set()
    for number in range(40):
        record = {**ROW, "flight_id": f"f-{number}"}
        status, answer, _ = split.ask("POST", "/v1/models/flights:predict", {"rows": [record]})
        request = native.PredictRequest(model="flights")
        request.rows.add().update(record)
        streamed = native.PredictStreamRequest(id="1", request=request)
        (told,) = split.native.PredictStream(iter([streamed]))
        versions = {answer["version"], split.native.Predict(request).version}
        assert (status, versions | {told.response.version}) == (200, {answer["version"]})
        seen |= versions
    assert seen == ({1, 2} if answers else {1})
    status, _, _ = split.ask("POST", "/v2/models/flights/versions/2/infer", {"inputs": TENSORS})
    assert status == (200 if answers else 404)

    # The pool tells the registry, and nobody else does.
    def told_of(arm: str) -> int:
        return max((getattr(report, arm).requests for report in world.registry.reports), default=0)

    until(lambda: told_of("candidate") + told_of("baseline") >= 120)
    until(lambda: told_of("candidate") > 30)
    assert {report.replica for report in world.registry.reports} == {pool.predictor._epoch}

    if is_promoted:
        world.registry.promote(trial.candidate)
    else:
        world.registry.abort("flights")
    serves = 2 if is_promoted else 1
    until(lambda: not pool.models.trials)
    until(lambda: versions_listed(split) == ([str(serves)], [str(serves)]))
    assert is_ready(split, serves) == (True, True)
    assert is_ready(split, 3 - serves) == (False, False)
    _, answer, _ = split.ask("POST", "/v1/models/flights:predict", {"rows": [ROW]})
    assert answer["version"] == serves
    # A pool that begins during a trial has the candidate before it answers anybody, unless that is a shadow.
    world.begin(world.store(3), baseline=serves, strategy=strategy, rollout="next")
    next_pool = split.start(only="flights")
    if not answers:
        until(lambda: next_pool.models.trials)
    assert next_pool.models.trials["flights"].candidate.version == 3


class Silent:
    """Answers nothing until it is told to."""

    def __init__(self) -> None:
        self.told = asyncio.Event()

    async def http(self, request: HttpRequest) -> HttpReply:
        await self.told.wait()
        return HttpReply(200, (), b"")

    async def rpc(self, request: RpcRequest) -> RpcReply:
        raise AssertionError


REQUEST = HttpRequest("POST", "/v1/models/flights:predict", (), b"x" * 10)


def pools(folder: Path, silent: Silent, **limits: Any) -> Pools:
    given = {"requests": 2, "size": 100, "seconds": 10.0, **limits}
    found = Pools({"flights": silent}, folder / "pools.json", **given)
    found.note(Production([Wanted("flights", 3, "run", "")]))
    return found


@pytest.mark.parametrize("limits", [{"requests": 2}, {"size": 25, "requests": 100}])
def test_what_waits_for_a_pool_is_bounded(tmp_path: Path, limits: dict[str, int]) -> None:
    async def run() -> None:
        silent = Silent()
        there = pools(tmp_path, silent, **limits)
        waiting = [asyncio.ensure_future(there.http("flights", REQUEST)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(EverloopError) as refused:
            await there.http("flights", REQUEST)
        assert (refused.value.kind, refused.value.reason) == (Kind.EXHAUSTED, "OVERLOADED")
        assert refused.value.retry_after > 0
        silent.told.set()
        assert [reply.status for reply in await asyncio.gather(*waiting)] == [200, 200]
        assert (await there.http("flights", REQUEST)).status == 200

    asyncio.run(run())


@pytest.mark.parametrize(
    ("seconds", "kind", "reason"),
    [
        (None, Kind.UNAVAILABLE, "POOL_UNAVAILABLE"),
        (0.01, Kind.DEADLINE, "DEADLINE_EXCEEDED"),
        (60.0, Kind.UNAVAILABLE, "POOL_UNAVAILABLE"),
    ],
)
def test_nobody_waits_for_a_pool_for_ever(
    tmp_path: Path, seconds: float | None, kind: Kind, reason: str
) -> None:
    there = pools(tmp_path, Silent(), seconds=0.05)
    with pytest.raises(EverloopError) as late:
        asyncio.run(there.http("flights", REQUEST, seconds))
    assert (late.value.kind, late.value.reason) == (kind, reason)


def test_what_the_registry_said_about_pools_outlives_the_replica(tmp_path: Path) -> None:
    pools(tmp_path, Silent())
    again = Pools({"flights": Silent()}, tmp_path / "pools.json", 1, 1, 1.0)
    assert again.version("flights").version == 3
    # A registry that names it no longer changes nothing.
    others = Production([Wanted("others", 1, "run", "")])
    assert again.note(others).versions == others.versions
    assert again.version("flights", "3").run_id == "run"


def test_requests_at_a_time_follow_from_what_they_took() -> None:
    durations, now = Histogram("durations", "Of requests.", ["door"], registry=None), [100.0]
    durations.labels("http").observe(7.0)
    ongoing = Ongoing(durations, lambda: now[0])
    durations.labels("http").observe(5.0)
    durations.labels("grpc").observe(15.0)
    now[0] = 105.0
    assert ongoing() == pytest.approx(4.0)
    now[0] = 106.0
    assert ongoing() == 0.0


def test_replicas_are_wanted_by_what_they_say() -> None:
    config = SimpleNamespace(get_target_ongoing_requests=lambda: 2.0)

    def wanted(metrics: dict[str, dict[str, float]]) -> float:
        context = SimpleNamespace(aggregated_metrics=metrics, target_num_replicas=3, config=config)
        return policy(context)[0]

    assert wanted({ONGOING: {"a": 5.0, "b": 4.0}}) == 4.5
    assert wanted({ONGOING: {"a": 0.0, "b": 0.0}}) == 0.0
    # Nobody has said anything yet: as before.
    assert wanted({}) == 3


def test_a_pool_that_is_asked_is_not_idle() -> None:
    config = SimpleNamespace(get_target_ongoing_requests=lambda: 2.0)

    def wanted(counted: float, metrics: dict[str, dict[str, float]]) -> float:
        context = SimpleNamespace(
            aggregated_metrics=metrics, total_num_requests=counted, config=config
        )
        return pool_policy(context)[0]

    assert wanted(9.0, {ONGOING: {"a": 4.0}}) == 4.5
    # Requests of a millisecond: none is under way whenever somebody looks.
    assert wanted(0.0, {ONGOING: {"a": 0.0004, "b": 0.0}}) == 1.0
    assert wanted(0.0, {ONGOING: {"a": 0.0}}) == 0.0
    assert wanted(0.0, {}) == 0.0


def test_rays_grpc_proxy_does_not_come_alone(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="EVERLOOP_RAY_HTTP_ADDRESS"):
        InferenceSettings(data_dir=tmp_path, ray_grpc_port=9000)
