"""What serves follows the registry, and survives everything that can be away or broken."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from everloop_inference.fakes import INPUTS, ROW, Artifact, ask, sample_artifact
from everloop_inference.load import Loader
from everloop_inference.metrics import LOAD_FAILURES
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
        Loader(world.artifacts, tmp_path / "cache").load(wanted, world.policies["flights"])
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


def test_a_damaged_cache_is_fetched_again_and_a_lost_one_falls_back(world: Any) -> None:
    one = world.publish(1)
    first = world.replica()
    world.publish(2)
    first.reconciler.once()
    assert version(first) == 2
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


def test_the_cache_holds_the_current_and_the_previous_version_only(
    world: Any, until: Callable[..., None]
) -> None:
    world.publish(1)
    replica = world.replica()
    for number in range(2, 5):
        world.publish(number)
        until(lambda number=number: version(replica) == number)
    cache = world.settings.data_dir / "artifacts"
    until(lambda: len(list(cache.glob("*/*"))) == 2)
    assert {path.name for path in cache.glob("*/*")} == {"flights-run-3", "flights-run-4"}


def test_a_start_downloads_nothing_before_the_last_good_set_serves(
    world: Any, monkeypatch: pytest.MonkeyPatch
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
    # The first look at the registry gets it, without a pause.
    replica.reconciler.once()
    assert version(replica, "other") == 1


def test_what_is_on_disk_does_not_wait_for_a_download(
    world: Any, until: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    world.publish(1, name="a")
    one = world.publish(1)
    replica = world.replica()
    world.publish(2)
    until(lambda: version(replica) == 2)
    replica._stopping.set()
    replica._reconciling.join()
    downloaded = world.artifacts.download
    seen: list[int] = []

    def download(run_id: str, folder: Path) -> None:
        seen.append(version(replica))
        downloaded(run_id, folder)

    monkeypatch.setattr(world.artifacts, "download", download)
    world.publish(2, name="a")
    world.registry.promote(one)
    replica.reconciler.once()
    assert seen == [1]
    assert version(replica, "a") == 2


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
    Loader(world.artifacts, cache).prune([])
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
