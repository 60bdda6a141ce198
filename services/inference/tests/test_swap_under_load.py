"""Promotions under concurrent load lose no request, and every answer is of one version."""

from __future__ import annotations

import gc
import http.client
import json
import threading
import weakref
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.protobuf.struct_pb2 import Struct

from everloop_contracts.stubs.everloop.inference.v1 import inference_pb2 as native
from everloop_contracts.stubs.everloop.inference.v1 import inference_pb2_grpc as native_grpc
from everloop_features.inputs import feeds_from_rows
from everloop_inference.adapters.engines import LocalEngines
from everloop_inference.fakes import INPUTS, ROW, sample_artifact
from everloop_inference.models.load import Loader

VERSIONS = 21


def expected(version: int, tmp_path: Any, world: Any) -> list[float]:
    wanted = world.publish(version)
    model = Loader(world.artifacts, LocalEngines(), tmp_path / "expected").load(
        wanted, world.policies["flights"]
    )
    scores: list[float] = model.run(feeds_from_rows([ROW] * 4, INPUTS))[:, 1].tolist()
    return scores


@pytest.mark.slow
def test_twenty_swaps_under_load_fail_nothing(
    world: Any, until: Callable[..., None], tmp_path: Any
) -> None:
    answers = {version: expected(version, tmp_path, world) for version in range(1, VERSIONS + 1)}
    assert len({scores[0] for scores in answers.values()}) == VERSIONS
    world.publish(1)
    replica = world.replica()
    stop = threading.Event()
    seen: dict[str, list[tuple[int, list[float]]]] = {}
    failures: list[BaseException] = []

    def over_http(name: str) -> None:
        connection = http.client.HTTPConnection(world.settings.http_address, timeout=10)
        body = json.dumps({"rows": [ROW] * 4})
        while not stop.is_set():
            connection.request("POST", "/v1/models/flights:predict", body)
            response = connection.getresponse()
            answer = json.loads(response.read())
            assert response.status == 200, answer
            scores = [item["score"] for item in answer["predictions"]]
            seen[name].append((answer["version"], scores))
        connection.close()

    def over_grpc(name: str) -> None:
        row = Struct()
        row.update(ROW)
        with grpc.insecure_channel(world.settings.predict_grpc_address) as channel:
            stub = native_grpc.InferenceServiceStub(channel)
            while not stop.is_set():
                answer = stub.Predict(native.PredictRequest(model="flights", rows=[row] * 4))
                scores = [item.score for item in answer.predictions]
                seen[name].append((answer.version, scores))

    def guarded(client: Callable[[str], None], name: str) -> None:
        try:
            client(name)
        except BaseException as error:
            failures.append(error)

    clients = []
    for number in range(3):
        for client in (over_http, over_grpc):
            name = f"{client.__name__} {number}"
            seen[name] = []
            clients.append(threading.Thread(target=guarded, args=(client, name)))
    for thread in clients:
        thread.start()
    until(lambda: failures or all(seen.values()))
    for version in range(2, VERSIONS + 1):
        world.publish(version)
        until(lambda version=version: replica.models.get("flights").version == version)
        count = {name: len(found) for name, found in seen.items()}
        # The new version answers every client before the next one comes.
        until(lambda count=count: failures or all(len(seen[n]) > c + 1 for n, c in count.items()))
    stop.set()
    for thread in clients:
        thread.join()
    assert failures == []
    for name, found in seen.items():
        versions = [version for version, _ in found]
        assert versions == sorted(versions), name
        assert set(versions) == set(range(1, VERSIONS + 1)), name
        for version, scores in found:
            assert scores == pytest.approx(answers[version], abs=1e-7), (name, version)


def test_the_replaced_version_is_freed(world: Any, until: Callable[..., None]) -> None:
    world.publish(1)
    replica = world.replica()
    session = weakref.ref(replica.models.get("flights").engine)
    world.publish(2)
    until(lambda: replica.models.get("flights").version == 2)
    until(lambda: gc.collect() >= 0 and session() is None)
    assert replica.models.get("flights").previous_version == 1


def test_a_caller_who_insists_on_the_old_version_is_told(
    world: Any, until: Callable[..., None]
) -> None:
    world.publish(1)
    replica = world.replica()
    world.publish(2, sample_artifact(0.7))
    until(lambda: replica.models.get("flights").version == 2)
    with pytest.raises(Exception, match="version 2 is"):
        replica.models.get("flights", "1")
