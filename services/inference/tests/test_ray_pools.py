"""On a real Ray: pools that sleep and wake, numbers of replicas that follow the work, and Ray's own doors."""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import psutil
import pytest
import yaml
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from prometheus_client.parser import text_string_to_metric_families
from services.inference.tests.cluster import REPOSITORY, Cluster, cluster_of_processes, replicas

from everloop_contracts.stubs.everloop.inference.v1 import inference_pb2 as native
from everloop_contracts.stubs.everloop.inference.v1 import inference_pb2_grpc as native_grpc
from everloop_contracts.stubs.everloop.registry.v1 import registry_pb2
from everloop_contracts.stubs.inference import grpc_service_pb2 as oip
from everloop_contracts.stubs.inference import grpc_service_pb2_grpc as oip_grpc
from everloop_inference.adapters.serve_handle import SMALL_BYTES
from everloop_inference.fakes import ROW

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(1500)]

POOL = {"min_replicas": 0, "max_replicas": 2, "ongoing_requests": 4, "idle": "1s"}


@pytest.fixture(scope="module")
def cluster(until: Callable[..., None]) -> Iterator[Cluster]:
    with cluster_of_processes() as cluster:
        document = yaml.safe_load((REPOSITORY / "pipelines/flight-delays.yaml").read_text())
        pipelines = cluster.folder / "pipelines"
        pipelines.mkdir()
        sleepy = {**document, "pipeline": "sleepy", "serving": {"pool": POOL}}
        (pipelines / "sleepy.yaml").write_text(yaml.safe_dump(sleepy))
        cluster.environment |= {
            "EVERLOOP_PIPELINES_DIR": str(pipelines),
            "EVERLOOP_REPLICAS_MAX": "2",
            "EVERLOOP_REPLICA_ONGOING_REQUESTS": "0.05",
            "EVERLOOP_POOL_SECONDS": "300",
            "EVERLOOP_SCALE_UP_SECONDS": "0",
            "EVERLOOP_SCALE_DOWN_SECONDS": "1",
            "EVERLOOP_SCALE_WINDOW_SECONDS": "11",
            "EVERLOOP_RAY_HTTP_ADDRESS": f"127.0.0.1:{cluster.ports[13]}",
            "EVERLOOP_RAY_GRPC_PORT": str(cluster.ports[14]),
        }
        for model in ("flights", "sleepy"):
            cluster.publish(1, model)
        cluster.start_head()
        cluster.start_service()
        until(cluster.serving, 480)
        until(lambda: cluster.predict() == 1, 300)
        until(lambda: answers(cluster.environment["EVERLOOP_RAY_HTTP_ADDRESS"]), 300)
        yield cluster


def ask(address: str, path: str, body: object | None = None, **headers: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(address, timeout=400)
    try:
        content = None if body is None else json.dumps(body)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("GET" if body is None else "POST", path, content, named)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def scrape(cluster: Cluster) -> list[Any]:
    """What Prometheus sees."""
    connection = http.client.HTTPConnection(cluster.environment["EVERLOOP_METRICS_ADDRESS"])
    connection.request("GET", "/metrics")
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    families = text_string_to_metric_families(text)
    return [sample for family in families for sample in family.samples]


def answers(address: str) -> bool:
    try:
        return ask(address, "/v2/health/ready")[0] == 200
    except (OSError, ValueError):
        return False


def test_a_pool_wakes_with_the_first_request_and_sleeps_again(
    cluster: Cluster, until: Callable[..., None]
) -> None:
    asleep = lambda: not replicas(cluster, "pool-sleepy")  # noqa: E731
    until(asleep, 300)
    # Whoever only looks does not wake it.
    assert ask(cluster.http, "/v2/models/sleepy/ready")[0] == 200
    listed = ask(cluster.http, "/v2/repository/index", {})[1]
    assert {entry["name"] for entry in listed} == {"flights", "sleepy"}
    assert asleep()

    # Who does not wait long is told so.
    path, body = "/v1/models/sleepy:predict", {"rows": [ROW]}
    status, refused = ask(cluster.http, path, body, grpc_timeout="200m")
    assert (status, refused["reason"]) == (504, "DEADLINE_EXCEEDED")
    began = time.monotonic()
    assert ask(cluster.http, path, body)[0] == 200
    print(f"the first time in {time.monotonic() - began:.2f} s")
    until(asleep, 300)

    # Many at once wake it, none is lost, and those who ask for others do not notice.
    began = time.monotonic()
    with ThreadPoolExecutor(16) as callers:
        answers = [callers.submit(ask, cluster.http, path, body) for _ in range(64)]
        others = []

        def ask_for_others() -> bool:
            others.append(cluster.predict())
            return any(answer.done() for answer in answers)

        until(ask_for_others, 300)
        print(f"from zero in {time.monotonic() - began:.2f} s, {len(others)} others meanwhile")
        assert {answer.result()[0] for answer in answers} == {200}
    assert set(others) == {1}

    request = native.PredictRequest(model="sleepy")
    request.rows.add().update(ROW)
    with grpc.insecure_channel(cluster.environment["EVERLOOP_PREDICT_GRPC_ADDRESS"]) as channel:
        assert native_grpc.InferenceServiceStub(channel).Predict(request).version == 1
        metadata = oip.ModelMetadataRequest(name="sleepy")
        described = oip_grpc.GRPCInferenceServiceStub(channel).ModelMetadata(metadata)
        assert list(described.versions) == ["1"]

    # More than fits into a message between replicas.
    many = {"rows": [ROW] * 4096}
    assert len(json.dumps(many)) > SMALL_BYTES
    status, answer = ask(cluster.http, path, many)
    assert (status, len(answer["predictions"])) == (200, 4096)
    print_costs(cluster)
    idle = time.monotonic()
    until(asleep, 300)
    print(f"at zero after {time.monotonic() - idle:.1f} s")
    assert ask(cluster.http, path, body)[0] == 200


def print_costs(cluster: Cluster, rounds: int = 10, requests: int = 50) -> None:
    """Prints what a request costs that is answered at once, and one that is passed on, in turns."""
    connection = http.client.HTTPConnection(cluster.http, timeout=60)
    body = json.dumps({"rows": [ROW]})
    taken: dict[str, list[float]] = {"flights": [], "sleepy": []}
    spent = dict.fromkeys(taken, 0.0)

    def processor_times() -> dict[int, float]:
        found = {}
        for process in (*replicas(cluster, "replica"), *replicas(cluster, "pool-sleepy")):
            with contextlib.suppress(psutil.NoSuchProcess):
                found[process.pid] = sum(process.cpu_times()[:2])
        return found

    for _ in range(rounds):
        for model, times in taken.items():
            before = processor_times()
            for _ in range(requests):
                began = time.perf_counter()
                connection.request("POST", f"/v1/models/{model}:predict", body)
                answer = connection.getresponse()
                answer.read()
                times.append(time.perf_counter() - began)
                assert answer.status == 200
            after = processor_times()
            spent[model] += sum(after[pid] - before[pid] for pid in after.keys() & before.keys())
    connection.close()
    for model, times in taken.items():
        times.sort()
        print(
            f"{model}: p50 {times[len(times) // 2] * 1e3:.2f} ms, p99 {times[-len(times) // 100] * 1e3:.2f} ms, "
            f"processor time of the replicas {spent[model] / len(times) * 1e3:.2f} ms a request"
        )


def test_a_killed_pool_replica_costs_no_request(
    cluster: Cluster, until: Callable[..., None]
) -> None:
    assert ask(cluster.http, "/v1/models/sleepy:predict", {"rows": [ROW]})[0] == 200
    stop = threading.Event()

    def ask_on() -> list[int]:
        statuses = []
        while not stop.is_set():
            statuses.append(ask(cluster.http, "/v1/models/sleepy:predict", {"rows": [ROW]})[0])
        return statuses

    with ThreadPoolExecutor(4) as callers:
        answers = [callers.submit(ask_on) for _ in range(4)]
        (killed, *_) = replicas(cluster, "pool-sleepy")
        killed.kill()
        until(lambda: replicas(cluster, "pool-sleepy") not in ([], [killed]), 300)
        stop.set()
        statuses = [status for answer in answers for status in answer.result()]
    print(f"{len(statuses)} requests over the death of a pool's replica")
    assert set(statuses) == {200}


def test_a_canary_in_a_pool_gets_its_share_and_is_promoted(
    cluster: Cluster, until: Callable[..., None]
) -> None:
    def answering(number: int) -> int:
        record = {**ROW, "flight_id": f"f-{number}"}
        status, answer = ask(cluster.http, "/v1/models/sleepy:predict", {"rows": [record]})
        assert status == 200
        return int(answer["version"])

    candidate = cluster.register(2, "sleepy")
    rollout = registry_pb2.Rollout(
        id="rollout",
        model="sleepy",
        candidate_version=2,
        baseline_version=1,
        plan=registry_pb2.RolloutPlan(
            strategy=registry_pb2.ROLLOUT_STRATEGY_CANARY, percent=50, key="flight_id"
        ),
    )
    registry = cluster.registry
    registry.trials = [registry_pb2.Trial(version=candidate, rollout=rollout)]
    # The pool may sleep or not: its first answers come from what runs, or from what starts with both versions.
    until(lambda: answering(0) and {answering(number) for number in range(10)} == {1, 2}, 300)
    given = {number: answering(number) for number in range(40)}
    assert {number: answering(number) for number in range(40)} == given
    until(lambda: registry.reports and registry.reports[-1].candidate.requests > 10, 60)
    assert {report.id for report in registry.reports} == {"rollout"}
    index = ask(cluster.http, "/v2/repository/index", {})[1]
    assert [entry["version"] for entry in index if entry["name"] == "sleepy"] == ["1", "2"]

    # One scrape shows the pool's replica beside the one that listens.
    def answers_by_pool() -> set[bool]:
        rows = "everloop_inference_rows_total"
        served = (sample for sample in scrape(cluster) if sample.name == rows)
        return {"pool" in sample.labels for sample in served if sample.value}

    assert cluster.predict() == 1
    until(lambda: answers_by_pool() == {True, False}, 60)

    registry.trials = []
    registry.versions = [one for one in registry.versions if one.model != "sleepy"] + [candidate]
    until(lambda: {answering(number) for number in range(10)} == {2}, 60)
    # Those that come later ask for version 1.
    registry.versions = [one for one in registry.versions if one.model != "sleepy"]
    cluster.publish(1, "sleepy")
    until(lambda: answering(0) == 1, 60)


def test_rays_own_doors_lead_to_the_same_answers(cluster: Cluster) -> None:
    proxy = cluster.environment["EVERLOOP_RAY_HTTP_ADDRESS"]
    status, answer = ask(proxy, "/v1/models/flights:predict", {"rows": [ROW]})
    assert (status, answer["version"]) == (200, 1)
    status, refused = ask(proxy, "/v1/models/flights:predict", {"rows": [{"nope": 1}]})
    assert (status, refused["reason"]) == (422, "MISSING_FIELD")
    assert ask(proxy, "/v2/models/ghost")[0] == 404
    assert ask(proxy, "/v1/models/sleepy:predict", {"rows": [ROW]})[0] == 200

    request = native.PredictRequest(model="flights")
    request.rows.add().update(ROW)
    port = cluster.environment["EVERLOOP_RAY_GRPC_PORT"]
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = native_grpc.InferenceServiceStub(channel)
        assert stub.Predict(request).version == 1
        ready = oip_grpc.GRPCInferenceServiceStub(channel).ServerReady(oip.ServerReadyRequest())
        assert ready.ready
        with pytest.raises(grpc.RpcError) as error:
            stub.GetModel(native.GetModelRequest(model="ghost"))
        assert error.value.code() is grpc.StatusCode.NOT_FOUND
        found = rpc_status.from_call(error.value)  # type: ignore[arg-type]
        info = error_details_pb2.ErrorInfo()
        assert found is not None and found.details[0].Unpack(info)
        assert info.reason == "MODEL_NOT_FOUND"
        # A stream, of which each request goes its own way.
        asked = [
            native.PredictStreamRequest(
                id=f"{model}-{number}", request=native.PredictRequest(model=model)
            )
            for model in ("flights", "sleepy", "ghost")
            for number in range(10)
        ]
        for message in asked:
            message.request.rows.add().update(ROW)
        found_of = {answer.id: answer for answer in stub.PredictStream(iter(asked), timeout=400)}
        assert found_of.keys() == {message.id for message in asked}
        for name, response in found_of.items():
            if name.startswith("ghost"):
                assert response.error.reason == "MODEL_NOT_FOUND"
            else:
                assert response.response.version == 1

    # A program that has joined the same Ray.
    done = subprocess.run(
        [sys.executable, "-c", BY_HANDLE, cluster.environment["EVERLOOP_RAY_ADDRESS"]],
        env=cluster.environment,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.split() == ["1", "MODEL_NOT_FOUND", "a", "b", "c"]


BY_HANDLE = """
import sys
import ray
from ray import serve
from everloop_contracts.stubs.everloop.inference.v1 import inference_pb2 as native
from everloop_inference.adapters.serve_handle import SMALL_BYTES
from everloop_inference.fakes import ROW
ray.init(address=sys.argv[1], namespace="everloop", log_to_driver=False, logging_level="ERROR")
handle = serve.get_app_handle("inference")
request = native.PredictRequest(model="flights")
request.rows.add().update(ROW)
print(handle.Predict.remote(request).result().version)
try:
    handle.GetModel.remote(native.GetModelRequest(model="ghost")).result()
except Exception as error:
    print(error.reason)
asked = [native.PredictStreamRequest(id=name, request=request) for name in "abc"]
answers = handle.options(stream=True).PredictStream.remote(asked)
print(*sorted(answer.id for answer in answers if answer.response.version == 1))
"""


def test_the_number_of_replicas_follows_the_requests(
    cluster: Cluster, until: Callable[..., None]
) -> None:
    until(lambda: len(replicas(cluster, "replica")) == 1, 300)
    stop = threading.Event()

    def ask_on() -> int:
        connection = http.client.HTTPConnection(cluster.http, timeout=10)
        body, asked = json.dumps({"rows": [ROW] * 100}), 0
        while not stop.is_set():
            connection.request("POST", "/v1/models/flights:predict", body)
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200
            asked += 1
        connection.close()
        return asked

    with ThreadPoolExecutor(8) as callers:
        answers = [callers.submit(ask_on) for _ in range(8)]
        try:
            began = time.monotonic()
            until(lambda: len(replicas(cluster, "replica")) == 2, 300)
            print(f"two replicas after {time.monotonic() - began:.1f} s")
        finally:
            stop.set()
        print(f"{sum(answer.result() for answer in answers)} requests")
    began = time.monotonic()
    until(lambda: len(replicas(cluster, "replica")) == 1, 300)
    print(f"one replica again after {time.monotonic() - began:.1f} s")
    assert cluster.predict() == 1
