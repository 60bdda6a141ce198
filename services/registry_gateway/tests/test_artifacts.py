"""The files of versions: one download for all who ask, a bounded cache, and nothing that was damaged or changed."""

from __future__ import annotations

import hashlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from everloop_contracts.artifacts import artifact_sha256
from everloop_contracts.stubs.everloop.registry.v1 import registry_pb2 as pb
from everloop_registry_gateway.adapters.artifact_cache import ArtifactCache
from everloop_registry_gateway.artifacts import PART_BYTES
from everloop_registry_gateway.metrics import ARTIFACTS_SERVED
from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.grpc_server import HANDLED

from .test_tampering import forget_files, refusal, tamper


def version(world, number: int):
    return world.ask(lambda store: store.version("late", number))


def whole(parts) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for path, part in parts:
        assert len(part) <= PART_BYTES
        found[path] = found.get(path, b"") + part
    return found


def kept(world) -> list[Path]:
    return list((world.folder / "artifacts" / "kept").iterdir())


@pytest.fixture
def one(world):
    """A version that was registered; nothing of it is on this machine's disk."""
    world.register(1)
    empty(world)
    return world


def empty(world) -> None:
    for folder in kept(world):
        ArtifactCache(world.folder / "artifacts", 1).drop(folder.name)
    world.registry.downloads.clear()


def test_what_was_judged_is_there_for_replicas_at_once(world):
    world.register(1)
    world.registry.downloads.clear()
    world.registry.reachable = False
    found = whole(world.artifacts.parts(version(world, 1)))
    assert found == world.registry.files[f"{1:032x}"]
    digests = {path: hashlib.sha256(content).hexdigest() for path, content in found.items()}
    assert artifact_sha256(digests) == version(world, 1).artifact_sha256
    assert world.registry.downloads == []


def test_a_promotion_and_a_rollback_look_at_mlflow_and_fill_the_cache(world):
    world.register(1)
    world.register(2)
    for move in (lambda: world.promote(1), world.rollback):
        empty(world)
        move()
        served = world.registry.downloads.copy()
        assert len(served) == 1
        whole(world.artifacts.parts(version(world, world.production())))
        assert world.registry.downloads == served


def test_large_and_empty_files_arrive_whole(world):
    candidate = world.train(1)
    large = bytes(range(256)) * (3 * PART_BYTES // 256) + b"the end"
    world.registry.files[candidate.run_id] |= {"model/weights": large, "model/__init__.py": b""}
    world.cache_bytes = 1 << 24
    world.restart()
    world.registrar.register(candidate)
    assert whole(world.artifacts.parts(version(world, 1))) == world.registry.files[candidate.run_id]


def test_many_who_ask_at_once_cost_one_download(one):
    begun, go_on = threading.Event(), threading.Event()
    download = one.registry.download

    def slow(*arguments) -> None:
        begun.set()
        assert go_on.wait(10)
        download(*arguments)

    one.registry.download = slow
    with ThreadPoolExecutor(12) as pool:
        asked = [
            pool.submit(lambda: whole(one.artifacts.parts(version(one, 1)))) for _ in range(12)
        ]
        assert begun.wait(10)
        go_on.set()
        answers = [each.result() for each in asked]
    assert answers == [one.registry.files[f"{1:032x}"]] * 12
    assert len(one.registry.downloads) == 1


def test_it_is_counted_where_files_came_from(one):
    def counted() -> list[float]:
        return [ARTIFACTS_SERVED.labels("late", it)._value.get() for it in ("mlflow", "cache")]

    before = counted()
    for _ in range(3):
        whole(one.artifacts.parts(version(one, 1)))
    assert [now - then for now, then in zip(counted(), before, strict=True)] == [1, 2]


def test_without_a_copy_nobody_gets_files_while_mlflow_is_away(one):
    one.registry.reachable = False
    error = refusal(lambda: whole(one.artifacts.parts(version(one, 1))))
    assert error.kind is Kind.UNAVAILABLE
    one.registry.reachable = True
    assert whole(one.artifacts.parts(version(one, 1)))


def test_who_waits_for_a_download_does_not_wait_for_ever(one):
    begun, go_on = threading.Event(), threading.Event()

    def never(*_) -> None:
        begun.set()
        go_on.wait(10)
        raise EverloopError(Kind.UNAVAILABLE, "MLFLOW_UNAVAILABLE", "never")

    one.registry.download = never
    one.artifacts._wait_seconds = 0.05
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(lambda: whole(one.artifacts.parts(version(one, 1))))
        assert begun.wait(10)
        error = refusal(lambda: whole(one.artifacts.parts(version(one, 1))))
        assert (error.kind, error.reason) == (Kind.UNAVAILABLE, "ARTIFACT_UNAVAILABLE")
        go_on.set()
        assert first.exception(10)


@pytest.mark.parametrize("path", ["model.onnx", "manifest.json", "golden.json", "model/MLmodel"])
def test_changed_files_are_not_handed_out(one, path):
    tamper(one, 1, path, b"changed")
    assert refusal(lambda: whole(one.artifacts.parts(version(one, 1)))).reason == "ARTIFACT_CHANGED"
    assert kept(one) == []


@pytest.mark.parametrize("path", ["model.onnx", "manifest.json", "golden.json", "model/MLmodel"])
def test_a_damaged_copy_is_noticed_and_made_anew(world, path):
    world.register(1)
    (folder,) = kept(world)
    (folder / path).write_bytes(b"damaged")
    world.registry.downloads.clear()
    error = refusal(lambda: whole(world.artifacts.parts(version(world, 1))))
    assert (error.kind, error.reason) == (Kind.UNAVAILABLE, "ARTIFACT_DAMAGED")
    assert whole(world.artifacts.parts(version(world, 1))) == world.registry.files[f"{1:032x}"]
    assert len(world.registry.downloads) == 1


def test_a_version_whose_files_were_not_recorded_is_served_and_downloaded_once(one):
    forget_files(one)
    for _ in range(2):
        found = whole(one.artifacts.parts(version(one, 1)))
        assert found == one.registry.files[f"{1:032x}"]
    assert len(one.registry.downloads) == 1
    empty(one)
    tamper(one, 1)
    assert refusal(lambda: whole(one.artifacts.parts(version(one, 1)))).reason == "ARTIFACT_CHANGED"


def test_the_cache_keeps_what_fits_and_was_asked_for_last(world):
    size = sum(map(len, world.registry.files[world.train(1).run_id].values()))
    world.cache_bytes = 2 * size + 1
    world.restart()
    world.register(1)
    world.register(2)
    whole(world.artifacts.parts(version(world, 1)))
    world.register(3)
    assert {folder.name for folder in kept(world)} == {
        version(world, number).artifact_sha256 for number in (1, 3)
    }


def test_what_is_read_is_read_to_its_end_though_it_is_removed(world):
    candidate = world.train(1)
    world.registry.files[candidate.run_id]["model/weights"] = b"w" * (2 * PART_BYTES)
    world.registrar.register(candidate)
    parts = world.artifacts.parts(version(world, 1))
    first = next(parts)
    empty(world)
    assert whole([first, *parts]) == world.registry.files[candidate.run_id]


def test_more_than_the_cache_holds_is_refused_at_registration(world):
    world.cache_bytes = 10
    world.restart()
    world.register(1)
    assert world.stages() == {1: "rejected"}


def test_a_new_process_finds_what_was_kept_and_drops_what_was_half_done(world):
    world.register(1)
    half = world.folder / "artifacts" / "incoming" / "half"
    half.mkdir()
    world.restart()
    assert not half.exists()
    world.registry.reachable = False
    assert whole(world.artifacts.parts(version(world, 1)))


def test_files_come_over_grpc_to_who_asks(world, artifacts_stub):
    world.register(1)
    stub = artifacts_stub()
    answer = stub.GetArtifacts(pb.GetArtifactsRequest(model="late", version=1), timeout=10)
    found = whole((part.path, part.data) for part in answer)
    assert found == world.registry.files[f"{1:032x}"]


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (pb.GetArtifactsRequest(model="late", version=9), grpc.StatusCode.NOT_FOUND),
        (pb.GetArtifactsRequest(model="late"), grpc.StatusCode.INVALID_ARGUMENT),
        (pb.GetArtifactsRequest(version=1), grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
def test_who_asks_for_nothing_is_told_so(world, artifacts_stub, request_, code):
    world.register(1)
    with pytest.raises(grpc.RpcError) as caught:
        list(artifacts_stub().GetArtifacts(request_, timeout=10))
    assert caught.value.code() is code


def test_who_does_not_take_files_is_cut_off(world, artifacts_stub):
    candidate = world.train(1)
    world.registry.files[candidate.run_id]["model/weights"] = b"w" * (1 << 24)
    world.cache_bytes = 1 << 25
    world.restart()
    world.registrar.register(candidate)

    def handled() -> float:
        method = "/everloop.registry.v1.RegistryService/GetArtifacts"
        return sum(
            sample.value
            for metric in HANDLED.collect()
            for sample in metric.samples
            if sample.labels["method"] == method and sample.name.endswith("_total")
        )

    before = handled()
    answer = artifacts_stub(send_seconds=0.3).GetArtifacts(
        pb.GetArtifactsRequest(model="late", version=1), timeout=20
    )
    next(answer)
    deadline = time.monotonic() + 10
    while handled() == before:
        assert time.monotonic() < deadline, "the worker is still held"
        time.sleep(0.02)
    with pytest.raises(grpc.RpcError) as caught:
        list(answer)
    assert caught.value.code() is grpc.StatusCode.CANCELLED
