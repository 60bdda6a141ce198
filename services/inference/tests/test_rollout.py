"""Replicas follow the registry's rollouts: no request fails, nothing is loaded twice, and what is reported is exact."""

from __future__ import annotations

import dataclasses
import gc
import http.client
import json
import logging
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest
from google.protobuf.struct_pb2 import Struct

from everloop_contracts.latency import BUCKETS
from everloop_contracts.stubs.everloop.inference.v1 import inference_pb2 as native
from everloop_contracts.stubs.everloop.inference.v1 import inference_pb2_grpc as native_grpc
from everloop_contracts.stubs.everloop.inference.v1.events_pb2 import PredictionsLogged
from everloop_contracts.stubs.everloop.registry.v1 import registry_pb2, registry_pb2_grpc
from everloop_inference.adapters.engines import LocalEngines
from everloop_inference.adapters.registry import GrpcRegistry
from everloop_inference.domain import ArmStats, Strategy, Trial, Wanted
from everloop_inference.fakes import ROW, ask, sample_artifact
from everloop_inference.metrics import LOAD_FAILURES
from everloop_inference.models.load import Loader
from everloop_inference.models.trial import OnTrial
from everloop_inference.ports import Report
from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.events import decode


class Load:
    """Callers at both doors who go on until they are told to stop.

    Attributes:
        seen: what each caller was told: record id, version, score.
        failures: what went wrong for somebody.
    """

    def __init__(self, world: Any, callers: int = 2) -> None:
        self.seen: dict[str, list[tuple[str, int, float]]] = {}
        self.failures: list[BaseException] = []
        self._world = world
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._guarded, args=(door, f"{door.__name__}-{number}"))
            for number in range(callers)
            for door in (self._over_http, self._over_grpc)
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @property
    def answers(self) -> list[tuple[str, int, float]]:
        return [answer for found in self.seen.values() for answer in list(found)]

    def count(self) -> int:
        assert self.failures == []
        return len(self.answers)

    def _guarded(self, door: Callable[[str], Iterator[tuple[str, int, float]]], name: str) -> None:
        self.seen[name] = []
        try:
            for answer in door(name):
                self.seen[name].append(answer)
        except BaseException as error:
            self.failures.append(error)

    def _names(self, name: str) -> Iterator[str]:
        number = 0
        while not self._stop.is_set():
            yield f"{name}-{number % 50}"
            number += 1

    def _over_http(self, name: str) -> Iterator[tuple[str, int, float]]:
        connection = http.client.HTTPConnection(self._world.settings.http_address, timeout=10)
        for record in self._names(name):
            body = json.dumps({"rows": [{**ROW, "flight_id": record}]})
            connection.request("POST", "/v1/models/flights:predict", body)
            response = connection.getresponse()
            answer = json.loads(response.read())
            assert response.status == 200, answer
            yield record, answer["version"], answer["predictions"][0]["score"]
        connection.close()

    def _over_grpc(self, name: str) -> Iterator[tuple[str, int, float]]:
        with grpc.insecure_channel(self._world.settings.predict_grpc_address) as channel:
            stub = native_grpc.InferenceServiceStub(channel)
            for record in self._names(name):
                row = Struct()
                row.update({**ROW, "flight_id": record})
                answer = stub.Predict(native.PredictRequest(model="flights", rows=[row]))
                yield record, answer.version, answer.predictions[0].score


def on_trial(replica: Any) -> int:
    """Version on trial; 0 if there is none."""
    on = replica.models.trials.get("flights")
    return on.candidate.version if on else 0


def version(replica: Any) -> int:
    return int(replica.models.get("flights").version)


def scores(world: Any, tmp_path: Any, *wanted: Wanted) -> dict[int, float]:
    found = {}
    for item in wanted:
        model = Loader(world.artifacts, LocalEngines(), tmp_path / "expected").load(
            item, world.policies["flights"]
        )
        layout = model.layout
        found[item.version] = float(model.run(layout.feeds(layout.from_rows([ROW])))[0, 1])
    return found


def failures(reason: str) -> float:
    return LOAD_FAILURES.labels("flights", reason)._value.get()  # type: ignore[no-any-return]


@pytest.mark.parametrize("strategy", list(Strategy))
@pytest.mark.parametrize("promoted", [True, False])
def test_the_end_of_a_trial_under_load_fails_nothing_and_loads_nothing(
    world: Any, until: Callable[..., None], tmp_path: Any, strategy: Strategy, promoted: bool
) -> None:
    one = world.publish(1)
    two = world.store(2)
    expected = scores(world, tmp_path, one, two)
    replica = world.replica()
    with Load(world) as load:
        until(lambda: load.count() > 50)
        trial = world.begin(two, strategy=strategy)
        until(lambda: on_trial(replica) == 2)
        arm = replica.models.trials["flights"].candidate_arm
        engine = weakref.ref(replica.models.trials["flights"].candidate.engine)
        downloads = world.artifacts.downloads
        until(lambda: load.count() and arm.stats().requests > 50)
        world.artifacts.down = True
        if promoted:
            world.registry.promote(two)
            until(lambda: version(replica) == 2)
            assert replica.models.get("flights").engine is engine()
            assert replica.models.get("flights").previous_version == 1
        else:
            world.registry.abort("flights")
            until(lambda: on_trial(replica) == 0)
            assert version(replica) == 1
        # Every caller, more than the one answer that was on its way.
        after = {name: len(found) for name, found in load.seen.items()}
        until(lambda: load.failures or all(len(load.seen[n]) > c + 4 for n, c in after.items()))
    assert load.failures == []
    assert world.artifacts.downloads == downloads
    for _, answered, score in load.answers:
        assert score == pytest.approx(expected[answered], abs=1e-7)
    last = {answered for found in load.seen.values() for _, answered, _ in found[-3:]}
    assert last == {2 if promoted else 1}
    if strategy is Strategy.SHADOW and not promoted:
        assert {answered for _, answered, _ in load.answers} == {1}
    if not promoted:
        until(lambda: gc.collect() >= 0 and engine() is None)
    if strategy is not Strategy.SHADOW and not promoted:
        # Sticky while it lasted.
        assert all(takes(trial)(record) for record, answered, _ in load.answers if answered == 2)
    # Nobody has been told about the trial since.
    sent = len(world.registry.reports)
    for _ in range(3):
        replica.reconciler.once()
    assert len(world.registry.reports) == sent


def takes(trial: Trial) -> Callable[[str], bool]:
    """Who gets a request, by the trial alone."""

    class Model:
        inputs = ()

    return OnTrial(trial, Model(), Model()).takes  # type: ignore[arg-type]


def test_replicas_agree_on_who_gets_the_candidate(world: Any, until: Callable[..., None]) -> None:
    world.publish(1)
    world.begin(world.store(2))
    found = []
    for _ in range(2):
        replica = world.replica()
        until(lambda replica=replica: on_trial(replica) == 2)
        found.append(
            [
                ask(replica.predictor, [{**ROW, "flight_id": f"f-{number}"}]).model.version
                for number in range(40)
            ]
        )
        world.stop(replica)
    assert found[0] == found[1]
    assert set(found[0]) == {1, 2}


def test_both_arms_are_reported_with_growing_totals(world: Any, until: Callable[..., None]) -> None:
    world.publish(1)
    replica = world.replica()
    world.begin(world.store(2))
    until(lambda: on_trial(replica) == 2)
    on = replica.models.trials["flights"]
    answered: Counter[int] = Counter()
    for number in range(60):
        row = {**ROW, "flight_id": f"f-{number}"}
        answered[ask(replica.predictor, [row, ROW]).model.version] += 1
    reports = world.registry.reports
    until(lambda: reports[-1].candidate.requests + reports[-1].baseline.requests == 60)
    last = reports[-1]
    assert (last.rollout, last.failure) == ("rollout", "")
    assert (last.candidate.requests, last.baseline.requests) == (answered[2], answered[1])
    assert (last.candidate.rows, last.baseline.rows) == (2 * answered[2], 2 * answered[1])
    assert len(last.candidate.latency_counts) == BUCKETS
    assert sum(last.candidate.latency_counts) == answered[2]
    assert last.candidate == on.candidate_arm.stats()
    sequences = [report.sequence for report in reports]
    assert sequences == sorted(set(sequences))
    totals = [report.candidate.requests for report in reports]
    assert totals == sorted(totals)
    assert {report.replica for report in reports} == {replica.predictor._epoch}


def test_the_answer_to_a_report_ends_reporting_and_is_looked_into_at_once(
    world: Any, until: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    world.publish(1)
    replica = world.replica()
    trial = world.begin(world.store(2))
    until(lambda: on_trial(replica) == 2)
    replica._stopping.set()
    replica._reconciling.join()
    registry = world.registry
    told = registry.report

    def ends(report: Report) -> bool:
        registry.promote(trial.candidate)
        return bool(told(report))

    monkeypatch.setattr(registry, "report", ends)
    sent = len(registry.reports)
    replica.reconciler.once()
    assert version(replica) == 2
    assert len(registry.reports) == sent + 1

    # A registry that has ended a rollout and lists it all the same hears no more of it.
    again = world.begin(world.store(3), baseline=2, rollout="second")
    monkeypatch.setattr(registry, "report", lambda report: bool(told(report) and False))
    sent = len(registry.reports)
    until(lambda: replica.reconciler.once() or replica.models.trials)
    for _ in range(3):
        replica.reconciler.once()
    assert replica.models.trials["flights"].trial == again
    assert len(registry.reports) == sent + 1


@pytest.mark.parametrize("reason", ["CHECKSUM_MISMATCH", "GOLDEN_MISMATCH", "BROKEN_EXPORT"])
def test_a_candidate_that_cannot_serve_is_reported_and_touches_nothing(
    world: Any, until: Callable[..., None], caplog: pytest.LogCaptureFixture, reason: str
) -> None:
    world.publish(1)
    replica = world.replica()
    good = sample_artifact(0.9)
    artifact, sha256 = {
        "CHECKSUM_MISMATCH": (good, "0" * 64),
        "GOLDEN_MISMATCH": (dataclasses.replace(good, golden=sample_artifact(0.91).golden), ""),
        "BROKEN_EXPORT": (dataclasses.replace(good, graph=b"nonsense"), ""),
    }[reason]
    with caplog.at_level(logging.ERROR, "everloop_inference.models.attempts"):
        world.begin(world.store(2, artifact, sha256=sha256))
        until(lambda: world.registry.reports)
    (report,) = world.registry.reports
    assert report.failure.startswith(f"{reason}: ")
    assert report.candidate == report.baseline == ArmStats()
    assert f"version 2 cannot serve ({reason}), its trial does not begin" in caplog.text
    assert ask(replica.predictor, [ROW]).model.version == 1
    # The registry has aborted it: nobody tries it again.
    until(lambda: world.registry.production().trials == [])
    replica.reconciler.once()
    assert len(world.registry.reports) == 1
    assert on_trial(replica) == 0


@pytest.mark.parametrize("fault", [MemoryError("full"), OSError("no files left"), "transfer"])
def test_what_befalls_one_replica_is_no_failure_of_the_version(
    world: Any, until: Callable[..., None], monkeypatch: pytest.MonkeyPatch, fault: Any
) -> None:
    world.publish(1)
    replica = world.replica()
    good = sample_artifact(0.9)
    candidate = world.store(2, good)
    if fault == "transfer":  # the first download is damaged, the next is not
        world.artifacts.runs[candidate.run_id] = dataclasses.replace(good, graph=b"nonsense")
        before = failures("CHECKSUM_MISMATCH")
        world.begin(candidate)
        until(lambda: failures("CHECKSUM_MISMATCH") > before)
    else:

        def lacking(graph: bytes) -> Any:
            raise fault

        monkeypatch.setattr("everloop_inference.adapters.engines.OnnxEngine", lacking)
        before = failures(type(fault).__name__)
        world.begin(candidate)
        until(lambda: failures(type(fault).__name__) >= before + 3)
        monkeypatch.undo()
    world.artifacts.runs[candidate.run_id] = good
    until(lambda: on_trial(replica) == 2)
    until(lambda: world.registry.reports)
    assert {report.failure for report in world.registry.reports} == {""}


def test_a_store_that_is_away_is_waited_for_and_no_failure(
    world: Any, until: Callable[..., None]
) -> None:
    world.publish(1)
    replica = world.replica()
    world.artifacts.down = True
    before = failures("ARTIFACT_UNAVAILABLE")
    world.begin(world.store(2))
    until(lambda: failures("ARTIFACT_UNAVAILABLE") >= before + 2)
    assert world.registry.reports == []
    world.artifacts.down = False
    until(lambda: on_trial(replica) == 2)
    until(lambda: world.registry.reports)
    assert {report.failure for report in world.registry.reports} == {""}


def test_a_trial_goes_on_while_the_registry_is_away_and_is_reported_afterwards(
    world: Any, until: Callable[..., None]
) -> None:
    world.publish(1)
    replica = world.replica()
    world.begin(world.store(2), percent=100)
    until(lambda: on_trial(replica) == 2)
    world.registry.down = True
    replica.reconciler.once()
    sent = len(world.registry.reports)
    for _ in range(20):
        assert ask(replica.predictor, [ROW]).model.version == 2
    replica.reconciler.once()
    assert len(world.registry.reports) == sent
    world.registry.down = False
    until(lambda: [r.candidate.requests for r in world.registry.reports][-1:] == [20])


def test_a_report_that_is_refused_is_mentioned_once_and_stops_nothing(
    world: Any,
    until: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world.publish(1)
    replica = world.replica()
    refused: list[Report] = []

    def refuse(report: Report) -> bool:
        refused.append(report)
        raise EverloopError(Kind.NOT_FOUND, "ROLLOUT_NOT_FOUND", "no such rollout")

    monkeypatch.setattr(world.registry, "report", refuse)
    with caplog.at_level(logging.WARNING, "everloop_inference.rollouts.follow"):
        world.begin(world.store(2), percent=100)
        until(lambda: len(refused) > 2)
    assert caplog.text.count("cannot be reported") == 1
    assert ask(replica.predictor, [ROW]).model.version == 2


def test_after_a_restart_with_the_registry_away_only_the_served_version_answers(
    world: Any, until: Callable[..., None]
) -> None:
    world.publish(1)
    first = world.replica()
    world.begin(world.store(2), percent=100)
    until(lambda: on_trial(first) == 2)
    assert ask(first.predictor, [ROW]).model.version == 2
    world.stop(first)
    world.registry.down = True
    second = world.replica()
    assert ask(second.predictor, [ROW]).model.version == 1
    assert second.models.trials == {}
    # It is back: the candidate comes from this machine's disk, and its counts begin anew under another name.
    world.artifacts.down = True
    world.registry.down = False
    until(lambda: on_trial(second) == 2)
    until(lambda: second.predictor._epoch in {r.replica for r in world.registry.reports[-1:]})
    assert world.registry.reports[-1].candidate.requests == 0


def test_after_a_restart_a_promoted_candidate_serves_from_disk(
    world: Any, until: Callable[..., None]
) -> None:
    world.publish(1)
    first = world.replica()
    two = world.store(2)
    world.begin(two)
    until(lambda: on_trial(first) == 2)
    world.registry.promote(two)
    until(lambda: version(first) == 2)
    world.stop(first)
    world.registry.down = world.artifacts.down = True
    assert version(world.replica()) == 2


def test_the_cache_keeps_a_candidate_while_it_is_on_trial(
    world: Any, until: Callable[..., None]
) -> None:
    world.settings = world.settings.model_copy(update={"artifact_cache_bytes": 1})
    cache = world.settings.data_dir / "artifacts"

    def cached() -> set[str]:
        return {path.name for path in cache.glob("*/*")}

    world.publish(1)
    world.publish(1, name="other")
    replica = world.replica()
    world.begin(world.store(2))
    until(lambda: on_trial(replica) == 2)
    # Another model's promotions clear a cache that has room for nothing more.
    for number in (2, 3):
        world.publish(number, name="other")
        until(lambda number=number: replica.models.get("other").version == number)
    until(lambda: "other-run-1" not in cached())
    assert cached() == {"flights-run-1", "flights-run-2", "other-run-2", "other-run-3"}
    world.registry.abort("flights")
    until(lambda: cached() == {"flights-run-1", "other-run-2", "other-run-3"})


def test_a_version_promoted_past_a_trial_ends_it(world: Any, until: Callable[..., None]) -> None:
    world.publish(1)
    replica = world.replica()
    world.begin(world.store(2))
    until(lambda: on_trial(replica) == 2)
    world.publish(3)
    until(lambda: version(replica) == 3)
    assert replica.models.trials == {}
    assert ask(replica.predictor, [ROW]).model.version == 3


def test_a_trial_waits_for_the_version_that_it_is_compared_with(
    world: Any, until: Callable[..., None]
) -> None:
    world.publish(1)
    replica = world.replica()
    world.begin(world.store(3), baseline=2)
    replica.reconciler.once()
    assert replica.models.trials == {}
    world.registry._versions = {"flights": world.store(2)}
    until(lambda: version(replica) == 2 and on_trial(replica) == 3)


def test_a_replica_is_ready_before_a_shadow_has_come(
    world: Any, monkeypatch: pytest.MonkeyPatch, until: Callable[..., None]
) -> None:
    coming, real = threading.Event(), world.artifacts.download
    candidate = world.store(2)

    def slow(wanted: Wanted, folder: Any) -> None:
        if wanted == candidate:
            assert coming.wait(30)
        real(wanted, folder)

    monkeypatch.setattr(world.artifacts, "download", slow)
    world.publish(1)
    world.begin(candidate, strategy=Strategy.SHADOW)
    try:
        replica = world.replica()
        assert replica._primed.wait(10)
        assert (version(replica), on_trial(replica)) == (1, 0)
    finally:
        coming.set()
    until(lambda: on_trial(replica) == 2)


def test_shadow_rows_are_logged_as_such_and_the_books_hold_all(
    world: Any, until: Callable[..., None]
) -> None:
    world.publish(1)
    world.begin(world.store(2), strategy=Strategy.SHADOW, percent=100)
    replica = world.replica()
    until(lambda: on_trial(replica) == 2)
    connection = http.client.HTTPConnection(world.settings.http_address, timeout=10)
    for number in range(30):
        body = json.dumps({"rows": [{**ROW, "flight_id": f"f-{number}"}] * 2})
        connection.request("POST", "/v1/models/flights:predict", body)
        assert json.loads(connection.getresponse().read())["version"] == 1
    connection.close()
    books = replica.log.books
    until(lambda: books.counts("flights").logged == 120)
    assert books.counts("flights").served == 120
    assert books.counts("flights").balanced
    rows: Counter[tuple[int, bool]] = Counter()
    records: dict[int, list[str]] = {1: [], 2: []}
    for item in world.sink.messages:
        data = decode(item.value, item.headers).data
        assert isinstance(data, PredictionsLogged)
        rows[data.model_version, data.shadow] += len(data.prediction_ids)
        records[data.model_version] += data.record_ids
    assert rows == {(1, False): 60, (2, True): 60}
    assert records[1] == records[2]


def test_the_metrics_of_a_replica_show_both_arms(world: Any, until: Callable[..., None]) -> None:
    world.publish(1)
    world.begin(world.store(2), percent=100)
    replica = world.replica()
    until(lambda: on_trial(replica) == 2)
    ask(replica.predictor, [ROW])
    connection = http.client.HTTPConnection(world.settings.http_address, timeout=10)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    labels = '{arm="candidate",model="flights"}'
    assert f"everloop_inference_trial_requests_total{labels} 1.0" in lines
    assert f"everloop_inference_trial_version{labels} 2.0" in lines
    shown = [line for line in lines if line.startswith("everloop_inference_trial_duration")]
    assert len(shown) == 2 * 17


class Gateway(registry_pb2_grpc.RegistryServiceServicer):
    """A registry gateway that says what the contract says."""

    def __init__(self) -> None:
        self.answer = registry_pb2.ListProductionResponse()
        self.state = registry_pb2.ROLLOUT_STATE_RUNNING
        self.reports: list[registry_pb2.ReportRolloutRequest] = []

    def ListProduction(self, request: Any, context: Any) -> registry_pb2.ListProductionResponse:
        return self.answer

    def ReportRollout(self, request: Any, context: Any) -> registry_pb2.ReportRolloutResponse:
        self.reports.append(request)
        return registry_pb2.ReportRolloutResponse(state=self.state)


@pytest.fixture
def gateway() -> Iterator[tuple[Gateway, GrpcRegistry]]:
    servicer = Gateway()  # type: ignore[abstract]
    server = grpc.server(futures.ThreadPoolExecutor(1))
    registry_pb2_grpc.add_RegistryServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    client = GrpcRegistry(f"127.0.0.1:{port}", 5.0, "")
    yield servicer, client
    client.close()
    server.stop(None)


def test_trials_are_read_and_reports_are_written_as_the_contract_says(
    gateway: tuple[Gateway, GrpcRegistry],
) -> None:
    servicer, client = gateway

    def listed(model: str, number: int) -> registry_pb2.ModelVersion:
        return registry_pb2.ModelVersion(
            model=model,
            version=number,
            run_id=f"run-{number}",
            onnx_sha256="ab",
            artifact_sha256="cd",
        )

    servicer.answer.versions.append(listed("flights", 1))
    for model, strategy in (
        ("flights", registry_pb2.ROLLOUT_STRATEGY_SHADOW),
        ("later", registry_pb2.ROLLOUT_STRATEGY_UNSPECIFIED),
    ):
        plan = registry_pb2.RolloutPlan(strategy=strategy, percent=12.5, key="customer")
        rollout = registry_pb2.Rollout(id="r-1", model=model, baseline_version=1, plan=plan)
        servicer.answer.trials.add(version=listed(model, 2), rollout=rollout)
    production = client.production()
    assert production.versions == [Wanted("flights", 1, "run-1", "ab", "cd")]
    candidate = Wanted("flights", 2, "run-2", "ab", "cd")
    expected = Trial("r-1", candidate, 1, Strategy.SHADOW, 12.5, "customer")
    assert production.trials == [expected]

    stats = ArmStats(3, 1, 7, (1, 1, *(0,) * 62))
    assert client.report(Report("r-1", "epoch", 4, stats, ArmStats(), "why")) is True
    (sent,) = servicer.reports
    assert (sent.id, sent.replica, sent.sequence, sent.failure) == ("r-1", "epoch", 4, "why")
    assert (sent.candidate.requests, sent.candidate.errors, sent.candidate.rows) == (3, 1, 7)
    assert list(sent.candidate.latency_counts) == [1, 1, *[0] * 62]
    servicer.state = registry_pb2.ROLLOUT_STATE_ABORTED
    assert client.report(Report("r-1", "epoch", 5, stats, stats)) is False
