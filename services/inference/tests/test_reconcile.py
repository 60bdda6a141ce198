"""What serves follows the registry, and survives everything that can be away or broken."""

from __future__ import annotations

import dataclasses
import glob
import json
import logging
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from everloop_inference.adapters.engines import LocalEngines
from everloop_inference.domain import Wanted
from everloop_inference.fakes import INPUTS, ROW, Artifact, ask, sample_artifact
from everloop_inference.metrics import LOAD_FAILURES
from everloop_inference.models.load import Loader
from everloop_inference.replica import Replica
from everloop_runtime.errors import EverloopError, Kind


def version(replica: Any, name: str = "flights") -> int:
    model = replica.models.serving.get(name)
    return model.version if model else 0


def failures(name: str, reason: str) -> float:
    return LOAD_FAILURES.labels(name, reason)._value.get()  # type: ignore[no-any-return]


def damaged(kind: str) -> tuple[Artifact, str, str]:
    """An artifact, the SHA-256 that the registry names for it, and the reason it is refused for."""
    good = sample_artifact(0.9)
    if kind == "other bytes":
        return good, "0" * 64, "CHECKSUM_MISMATCH"
    if kind == "not a graph":
        bad = dataclasses.replace(good, graph=b"nonsense")
        return bad, bad.sha256, "BROKEN_EXPORT"
    if kind == "no manifest":
        bad = dataclasses.replace(good, manifest={})
        return bad, bad.sha256, "BROKEN_ARTIFACT"
    if kind == "other inputs":
        inputs = [spec.to_json() for spec in INPUTS[1:]]
        bad = dataclasses.replace(good, manifest={**good.manifest, "inputs": inputs})
        return bad, bad.sha256, "BROKEN_EXPORT"
    if kind == "other classes":
        bad = dataclasses.replace(good, manifest={**good.manifest, "classes": ["a", "b", "c"]})
        return bad, bad.sha256, "BROKEN_ARTIFACT"
    if kind == "no golden rows":
        bad = dataclasses.replace(good, golden={"rows": [], "probabilities": []})
        return bad, bad.sha256, "BROKEN_ARTIFACT"
    assert kind == "other answers"
    bad = dataclasses.replace(good, golden=sample_artifact(0.91).golden)
    return bad, bad.sha256, "GOLDEN_MISMATCH"


@pytest.mark.parametrize(
    "kind",
    [
        "other bytes",
        "not a graph",
        "no manifest",
        "other inputs",
        "other classes",
        "no golden rows",
        "other answers",
    ],
)
def test_a_bad_artifact_leaves_the_old_version_serving_and_says_so(
    world: Any, until: Callable[..., None], caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    artifact, sha256, reason = damaged(kind)
    world.publish(1)
    replica = world.replica()
    before = failures("flights", reason)
    with caplog.at_level(logging.ERROR, "everloop_inference.reconcile"):
        world.publish(2, artifact, sha256=sha256)
        # More than once: it is tried again.
        until(lambda: failures("flights", reason) >= before + 2)
    assert version(replica) == 1
    assert len(ask(replica.predictor, [ROW]).scores) == 1
    assert f"version 2 cannot serve ({reason}), version 1 goes on" in caplog.text
    # The right artifact appears under the same version: it serves without a restart.
    good = sample_artifact(0.9)
    world.publish(2, good)
    until(lambda: version(replica) == 2)


def test_the_loader_raises_what_is_wrong(world: Any, tmp_path: Any) -> None:
    artifact, sha256, reason = damaged("other bytes")
    wanted = world.publish(1, artifact, sha256=sha256)
    with pytest.raises(EverloopError) as caught:
        Loader(world.artifacts, LocalEngines(), tmp_path / "cache").load(
            wanted, world.policies["flights"]
        )
    assert (caught.value.kind, caught.value.reason) == (Kind.PRECONDITION, reason)


def test_a_restart_serves_with_registry_store_and_broker_down(world: Any) -> None:
    world.publish(1)
    world.publish(3, name="other")
    first = world.replica()
    assert (version(first), version(first, "other")) == (1, 3)
    answer = ask(first.predictor, [ROW])
    world.stop(first)
    downloads = world.artifacts.downloads

    world.registry.down = world.artifacts.down = world.sink.away = True
    second = world.replica()
    again = ask(second.predictor, [ROW])
    assert (again.model.version, again.scores) == (1, answer.scores)
    assert again.prediction_ids != answer.prediction_ids
    assert version(second, "other") == 3
    assert world.artifacts.downloads == downloads


def test_a_damaged_cache_is_fetched_again_and_a_lost_one_falls_back(
    world: Any, until: Callable[..., None]
) -> None:
    one = world.publish(1)
    first = world.replica()
    world.publish(2)
    until(lambda: version(first) == 2)
    world.stop(first)
    cache = world.settings.data_dir / "artifacts"
    two = world.registry.production().versions[0]
    graph = cache / two.sha256 / two.run_id / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    second = world.replica()
    assert version(second) == 2
    assert second.models.get("flights").previous_version == 1
    world.stop(second)

    # Now nothing can be fetched: the version before is still on disk.
    graph.write_bytes(b"")
    world.registry.down = world.artifacts.down = True
    third = world.replica()
    assert version(third) == 1
    assert (cache / one.sha256).is_dir()


def cached(world: Any) -> set[str]:
    found = glob.glob(
        "*/*", root_dir=world.settings.data_dir / "artifacts"
    )  # bears what goes meanwhile
    return {Path(path).name for path in found}


def test_the_cache_never_holds_less_than_the_current_and_the_previous_version(
    world: Any, until: Callable[..., None]
) -> None:
    world.settings = world.settings.model_copy(update={"artifact_cache_bytes": 1})
    world.publish(1)
    replica = world.replica()
    for number in range(2, 5):
        world.publish(number)
        until(lambda number=number: version(replica) == number)
    until(lambda: cached(world) == {"flights-run-3", "flights-run-4"})


def test_what_was_loaded_lately_is_kept_as_far_as_it_fits_and_serves_again_at_once(
    world: Any, until: Callable[..., None]
) -> None:
    wanted = [world.store(number) for number in range(1, 6)]
    size = max(sum(map(len, artifact.files.values())) for artifact in world.artifacts.runs.values())
    world.settings = world.settings.model_copy(update={"artifact_cache_bytes": 4 * size})
    world.registry.promote(wanted[0])
    replica = world.replica()
    for number in (2, 3, 4, 1, 5):
        world.registry.promote(wanted[number - 1])
        until(lambda number=number: version(replica) == number)
    until(lambda: cached(world) == {f"flights-run-{number}" for number in (1, 3, 4, 5)})
    world.artifacts.down = True
    world.registry.promote(wanted[2])
    until(lambda: version(replica) == 3)


def test_two_replicas_clean_up_one_cache_at_once(world: Any, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    loaders = [Loader(world.artifacts, LocalEngines(), cache, most_bytes=0) for _ in range(4)]
    for turn in range(20):
        for number in range(8):
            folder = cache / f"{turn}-{number}" / "run" / "model"
            folder.mkdir(parents=True)
            (folder / "MLmodel").write_text("flavors")
        with ThreadPoolExecutor(len(loaders)) as pool:
            list(pool.map(lambda loader: loader.prune(()), loaders))
        loaders[0].prune(())  # what two of them hindered each other from
        assert list(cache.iterdir()) == []


def test_a_download_that_has_come_is_loaded_without_another_pause(
    world: Any, until: Callable[..., None]
) -> None:
    world.publish(1)
    world.settings = world.settings.model_copy(update={"reconcile_seconds": 60.0})
    replica = world.replica()
    assert (
        version(replica) == 1
    )  # the first look asked for it, the second one came when it was there
    world.publish(2)
    replica.reconciler.wake()
    until(lambda: version(replica) == 2)


@pytest.mark.parametrize("path", ["model.onnx", "manifest.json", "golden.json", "model/MLmodel"])
@pytest.mark.parametrize("content", [b"{}", None], ids=["changed", "gone"])
def test_no_file_is_loaded_that_is_not_what_was_registered(
    world: Any, tmp_path: Path, path: str, content: bytes | None
) -> None:
    logged = tmp_path / "logged"
    logged.mkdir()
    (logged / "MLmodel").write_text("flavors: {}")
    wanted = world.publish(1, dataclasses.replace(sample_artifact(), logged=logged))
    loader = Loader(world.artifacts, LocalEngines(), tmp_path / "cache")
    loader.fetch(wanted)
    (file,) = (tmp_path / "cache").glob(f"*/*/{path}")
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    with pytest.raises(EverloopError) as caught:
        loader.load(wanted, world.policies["flights"])
    assert caught.value.reason == "CHECKSUM_MISMATCH"
    assert not loader.has(wanted)
    before = dataclasses.replace(wanted, artifact_sha256="")
    assert loader.load(before, world.policies["flights"]).version == 1


def test_what_python_compiles_beside_a_model_changes_nothing(world: Any, tmp_path: Path) -> None:
    wanted = world.publish(1)
    loader = Loader(world.artifacts, LocalEngines(), tmp_path / "cache")
    loader.load(wanted, world.policies["flights"])
    (folder,) = (tmp_path / "cache").glob("*/*")
    compiled = folder / "model" / "code" / "__pycache__" / "more.pyc"
    compiled.parent.mkdir(parents=True)
    compiled.write_bytes(b"compiled")
    assert loader.cached(wanted, world.policies["flights"]).version == 1


def test_a_start_downloads_nothing_before_the_last_good_set_serves(
    world: Any, until: Callable[..., None]
) -> None:
    world.publish(1)
    other = world.publish(1, name="other")
    world.stop(world.replica())
    shutil.rmtree(world.settings.data_dir / "artifacts" / other.sha256 / other.run_id)
    replica = Replica(
        world.settings,
        world.policies,
        "mark",
        registry=world.registry,
        artifacts=world.artifacts,
        sink=world.sink,
    )
    downloads = world.artifacts.downloads
    replica.reconciler.restore()
    assert world.artifacts.downloads == downloads
    assert (version(replica), version(replica, "other")) == (1, 0)
    # The first look at the registry asks for it, without a pause.
    replica.reconciler.once()
    until(lambda: world.artifacts.downloads == downloads + 1)

    def has_other() -> bool:
        replica.reconciler.once()
        return version(replica, "other") == 1

    until(has_other)


class Gate:
    """Lets downloads wait until they are let go, and counts those that do."""

    def __init__(self, world: Any, monkeypatch: pytest.MonkeyPatch, *runs: str) -> None:
        self.waiting: list[str] = []
        self.open = threading.Event()
        downloaded = world.artifacts.download

        def download(wanted: Wanted, folder: Path) -> None:
            if wanted.run_id in runs:
                self.waiting.append(wanted.run_id)
                assert self.open.wait(30)
            downloaded(wanted, folder)

        monkeypatch.setattr(world.artifacts, "download", download)


def test_a_slow_download_holds_nobody_up(
    world: Any, until: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    world.publish(1, name="a")
    one = world.publish(1)
    replica = world.replica()
    gate = Gate(world, monkeypatch, "a-run-2", "a-run-3")
    world.publish(2, name="a")
    until(lambda: gate.waiting == ["a-run-2"])
    world.publish(2)
    until(lambda: version(replica) == 2)
    world.registry.promote(one)
    until(lambda: version(replica) == 1)
    # What it no longer names is not waited for either.
    world.publish(3, name="a")
    until(lambda: gate.waiting == ["a-run-2", "a-run-3"])
    assert version(replica, "a") == 1
    gate.open.set()
    until(lambda: version(replica, "a") == 3)


def test_a_start_waits_for_a_few_downloads_at_a_time(
    world: Any, until: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"model-{number}" for number in range(5)]
    for name in names:
        world.publish(1, name=name)
    world.settings = world.settings.model_copy(update={"downloads": 2})
    gate = Gate(world, monkeypatch, *(f"{name}-run-1" for name in names))
    with ThreadPoolExecutor(1) as starting:
        started = starting.submit(world.replica)
        until(lambda: len(gate.waiting) == 2)
        looks = world.registry.looks
        until(lambda: world.registry.looks > looks + 2)
        assert (len(gate.waiting), started.done()) == (2, False)
        gate.open.set()
        replica = started.result(30)
    assert {version(replica, name) for name in names} == {1}


def test_pruning_leaves_what_another_replica_puts_in_meanwhile(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    empty = cache / "sha"
    empty.mkdir(parents=True)
    listed = Path.iterdir
    removed = Path.rmdir

    def racing(act: Callable[[Path], Any]) -> Callable[[Path], Any]:
        def then(path: Path) -> Any:
            if path != empty:
                return act(path)
            found = iter(list(act(path))) if act is listed else None
            (path / "run").mkdir(exist_ok=True)
            return found if act is listed else act(path)

        return then

    monkeypatch.setattr(Path, "iterdir", racing(listed))
    monkeypatch.setattr(Path, "rmdir", racing(removed))
    Loader(world.artifacts, LocalEngines(), cache).prune([])
    assert (empty / "run").is_dir()


def test_a_rollback_needs_no_store(world: Any, until: Callable[..., None]) -> None:
    one = world.publish(1)
    replica = world.replica()
    world.publish(2)
    until(lambda: version(replica) == 2)
    world.artifacts.down = True
    world.registry.promote(one)
    until(lambda: version(replica) == 1)
    assert replica.models.get("flights").previous_version == 2


def test_a_model_that_the_registry_forgets_serves_on(
    world: Any, until: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    world.publish(1)
    replica = world.replica()
    with caplog.at_level(logging.WARNING):
        world.registry._versions = {}
        until(lambda: "no longer names flights" in caplog.text)
    assert version(replica) == 1


def test_an_unreadable_memory_is_not_the_end(world: Any) -> None:
    world.publish(1)
    state = world.settings.data_dir / "serving.json"
    state.parent.mkdir(parents=True)
    state.write_text("{")
    replica = world.replica()
    assert version(replica) == 1
    assert json.loads(state.read_text())["models"][0]["serving"]["version"] == 1
